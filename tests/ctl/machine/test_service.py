"""A device's program that ends again and again."""

import asyncio
import signal
import socket
from contextlib import closing, suppress
from pathlib import Path

import pytest

from tests.conftest import Run
from tests.ctl.machine.wishes import kind
from tests.ctl.programs import python_script
from vhostd.ctl.machine import service as module
from vhostd.ctl.machine.devices import Device
from vhostd.ctl.machine.service import Service

NOTIFIES = """
import os, socket, sys, signal
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
    sock.sendto(b"STATUS=starting\\nREADY=1", os.environ["NOTIFY_SOCKET"])
signal.pause()
"""


def device(program: Path, name: str = "disk") -> Device:
    return Device(kind(name), f"{name}0", program, (), program.parent)


def listens(path: Path) -> bool:
    with closing(socket.socket(socket.AF_UNIX)) as sock, suppress(ConnectionRefusedError):
        sock.connect(str(path))
        return True
    return False


def said_until_given_up(program: Path, run_async: Run) -> list[str]:
    """What a user is told until the program is started no more, and nobody listens for it."""
    lines: list[str] = []

    async def main() -> None:
        service = Service(device(program), program.parent, lines.append)
        await service.keep(service.start())
        assert not listens(program.parent / "disk0.sock")
        await service.stop()

    run_async(main)
    return lines


def test_it_is_given_up_when_it_ends_too_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_async: Run
) -> None:
    monkeypatch.setattr(module, "PAUSE", 0)
    program = python_script(tmp_path / "program", "raise SystemExit(1)")
    lines = said_until_given_up(program, run_async)
    again = "(disk0) ended with status 1, and is started again"
    assert [line.partition(" ")[2] for line in lines] == [
        *([again] * 4),
        "(disk0) ended with status 1, too often, and is not started again: the guest's disk does not answer",
    ]


def test_it_is_ready_when_it_says_so(tmp_path: Path, run_async: Run) -> None:
    program = python_script(tmp_path / "program", NOTIFIES)

    async def main() -> None:
        service = Service(device(program), tmp_path, lambda _: None)
        child = service.start()
        assert await service.ready(child) is None
        assert listens(tmp_path / "disk0.sock")
        await service.stop()
        assert child.ended.result() == -signal.SIGTERM

    run_async(main)


def test_its_end_before_that_is_noticed(tmp_path: Path, run_async: Run) -> None:
    program = python_script(tmp_path / "program", "raise SystemExit(3)")

    async def main() -> None:
        service = Service(device(program, "rng"), tmp_path, lambda _: None)
        assert await service.ready(service.start()) == 3
        await service.stop()

    run_async(main)


def test_a_guest_that_hangs_without_it(tmp_path: Path, run_async: Run) -> None:
    program = python_script(tmp_path / "program", "raise SystemExit(1)")
    lines: list[str] = []

    async def main() -> None:
        service = Service(device(program, "console"), tmp_path, lines.append)
        await service.keep(service.start())
        await service.stop()

    run_async(main)
    assert [line.partition(" ")[2] for line in lines] == [
        "(console0) ended with status 1: the guest has lost its console, which QEMU cannot take back; a "
        "guest with Linux hangs as soon as it writes there: end it"
    ]


def test_one_that_does_not_end_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_async: Run
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.01)
    ignoring = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    program = python_script(tmp_path / "program", ignoring + NOTIFIES)

    async def main() -> None:
        service = Service(device(program), tmp_path, lambda _: None)
        child = service.start()
        await service.ready(child)
        await asyncio.wait_for(service.stop(), 20)
        assert child.ended.result() == -signal.SIGKILL

    run_async(main)


def test_its_file_is_gone_when_it_ends(tmp_path: Path, run_async: Run) -> None:
    program = python_script(tmp_path / "program", "import os, sys; os.unlink(sys.argv[0])")
    lines = said_until_given_up(program, run_async)
    assert lines[-1] == (
        f"{program} cannot be started: No such file or directory: the guest's disk does not answer"
    )
