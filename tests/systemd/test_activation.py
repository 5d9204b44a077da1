"""A real guest whose device is started by its first connection."""

import subprocess
from pathlib import Path

import pytest

from tests.guest.guest import Guest
from tests.guest.machine import vhost_user_options
from tests.programs import PATIENCE, executable, listens_at
from tests.systemd.manager import Manager

pytestmark = pytest.mark.guest


def test_a_socket_that_systemd_hands_over_serves_a_guest(tmp_path: Path) -> None:
    path = tmp_path / "rng.sock"
    command = ["systemd-socket-activate", f"--listen={path}", executable("vhost-user-rng")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as program:
        try:
            assert program.stderr is not None
            assert "Listening on" in program.stderr.readline()
            assert listens_at(path)
            options = vhost_user_options("vhost-user-rng-pci", path, "rng")
            with Guest(options=options) as guest:
                assert guest.call("rng_current").startswith("virtio_rng")
                assert len(guest.call("hwrng", count=64)["data"]) == 128
            program.terminate()
            assert program.wait(PATIENCE) == 0
        finally:
            program.kill()


def test_a_service_in_its_sandbox_serves_a_guest(tmp_path: Path) -> None:
    with Manager(tmp_path) as manager:
        manager.run("start", "vhost-user-rng@a.socket")
        path = manager.socket_path("vhost-user-rng")
        with Guest(options=vhost_user_options("vhost-user-rng-pci", path, "rng")) as guest:
            assert guest.call("rng_current").startswith("virtio_rng")
            assert len(guest.call("hwrng", count=64)["data"]) == 128
            assert manager.show("vhost-user-rng@a.service", "StatusText") == "serving a front-end"
        manager.run("stop", "vhost-user-rng@a.service")
        assert manager.show("vhost-user-rng@a.service", "Result") == "success"
