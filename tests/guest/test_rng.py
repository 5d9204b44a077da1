"""vhost-user-rng in a real guest."""

import os
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.backend import STOP_TIMEOUT, Backend
from tests.guest.guest import Guest
from tests.guest.machine import vhost_user_options
from tests.program.metrics.scraping import scrape

pytestmark = pytest.mark.guest

PERIOD = 0.5  # seconds
LIMIT = 256  # bytes per period


@pytest.fixture(scope="module")
def metrics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the program's metrics are."""
    return tmp_path_factory.mktemp("metrics") / "metrics.sock"


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory, metrics: Path) -> Iterator[Backend]:
    with Backend("vhost-user-rng", tmp_path_factory.mktemp("rng"), f"--metrics=unix:{metrics}") as backend:
        yield backend


@pytest.fixture(scope="module")
def guest(backend: Backend) -> Iterator[Guest]:
    with Guest(options=vhost_user_options("vhost-user-rng-pci", backend.path, "rng")) as guest:
        yield guest


def test_the_guest_uses_it(guest: Guest) -> None:
    assert guest.call("rng_current").startswith("virtio_rng")


def test_bytes_are_evenly_spread(guest: Guest) -> None:
    """Chi-squared over 16 KiB: beyond these bounds once in a hundred thousand runs on either side."""
    size = 16384
    data = bytes.fromhex(guest.call("hwrng", count=size)["data"])
    assert len(data) == size
    expected = size / 256
    counts = Counter(data)
    chi_squared = sum((counts[byte] - expected) ** 2 / expected for byte in range(256))
    assert 164 < chi_squared < 363


def test_samples_differ(guest: Guest) -> None:
    samples = {guest.call("hwrng", count=32)["data"] for _ in range(20)}
    assert len(samples) == 20


def test_its_metrics_tell_what_the_guest_has_taken(guest: Guest, metrics: Path) -> None:
    size = 4096
    before = scrape(str(metrics))
    guest.call("hwrng", count=size)
    after = scrape(str(metrics))
    assert after.value("vhost_user_front_end_connected") == 1
    assert after.value("vhost_user_ring_started", ring="0") == 1
    assert after.value("vhost_user_errors_total", ring="0") == 0
    grown = {
        name: (after.value(name, ring="0") or 0) - (before.value(name, ring="0") or 0)
        for name in ("vhost_user_written_bytes_total", "vhost_user_requests_total")
    }
    # The driver reads ahead, so what it gave the guest first had been written before.
    assert grown["vhost_user_written_bytes_total"] >= size / 2
    assert 0 < grown["vhost_user_requests_total"] <= grown["vhost_user_written_bytes_total"]


def test_it_reports_its_rings(guest: Guest, backend: Backend) -> None:
    guest.call("hwrng", count=16)
    backend.process.send_signal(signal.SIGUSR2)
    end = time.monotonic() + STOP_TIMEOUT
    while "vring 0: started, enabled, size=" not in backend.log():
        assert time.monotonic() < end, backend.log()
        os.sched_yield()
    report = backend.log().splitlines()[-2:]
    assert "a front-end is connected, features=" in report[0]
    assert re.search(r"base=\d+:[01] in_flight=\d+ fds=kick\+call.* packed=1", report[1])


def test_it_works_after_a_reboot(guest: Guest) -> None:
    guest.reboot()
    assert len(guest.call("hwrng", count=64)["data"]) == 128


def test_a_limit_holds(guest: Guest, tmp_path: Path) -> None:
    options = (f"--max-bytes={LIMIT}", f"--period={int(PERIOD * 1000)}")
    with Backend("vhost-user-rng", tmp_path, *options) as backend:
        guest.plug_vhost_user("vhost-user-rng-pci", "limited", backend.path)
        select = "until echo virtio_rng.1 > /sys/class/misc/hw_random/rng_current; do :; done 2>/dev/null"
        guest.call("run", argv=["sh", "-c", select])
        assert guest.call("rng_current") == "virtio_rng.1"
        begin = time.monotonic()
        guest.call("hwrng", count=LIMIT * 5)
        # What the driver had read ahead, and the period already begun, come at once.
        assert time.monotonic() - begin > PERIOD * 3
        guest.unplug("limited")
        assert guest.call("rng_current") == "virtio_rng.0"
