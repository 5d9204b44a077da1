"""All of a machine running: its programs first, then QEMU; its programs end with QEMU."""

import asyncio
import os
import signal
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from vhostd.ctl import SIGNALLED
from vhostd.ctl.ending import asked_to_end
from vhostd.ctl.machine.children import Child, first_of, how_it_ended
from vhostd.ctl.machine.command import Machine, qemu_version
from vhostd.ctl.machine.service import Service
from vhostd.ctl.machine.terminal import terminal_kept
from vhostd.errors import SetupError

NOTICE = 2.0  # seconds after which a user is told what is waited for
LONGEST = 107  # bytes of a socket's path, by unix(7)
ROOM = 40  # bytes of it for the names that are made in the folder

Tell = Callable[[str], None]


def run_machine(machine: Machine, tell: Tell) -> int:
    """Runs a machine until QEMU ends, and returns QEMU's exit status, as a shell has it.

    If a program does not come to serve, QEMU is not started. The status is the program's then, and it has
    said why on stderr. Raises SetupError.
    """
    machine.find_qemu()
    version = qemu_version(machine.words, machine.folder)
    try:
        made = tempfile.TemporaryDirectory(prefix="vhostctl-", dir=runtime_folder())
    except OSError as error:
        raise SetupError(f"no folder for sockets: {error.filename}: {error.strerror}") from None
    with terminal_kept(), made as name, asyncio.Runner() as runner:
        folder = Path(name)
        command = machine.command(folder, version)
        for device in machine.devices:
            if device.event_socket:
                tell(f"{device.name}: write events to {device.events(folder)}")
            if device.terminal:
                tell(f"{device.name}: open {device.link(folder)}, as with screen")
        return runner.run(_run(machine, command, folder, tell))


def runtime_folder() -> str:
    """The folder for what lives as long as a machine, with room for the names of sockets."""
    for folder in (os.environ.get("XDG_RUNTIME_DIR", ""), tempfile.gettempdir()):
        if len(os.fsencode(folder)) < LONGEST - ROOM and os.access(folder, os.W_OK | os.X_OK):
            return folder
    return "/tmp"


async def _run(machine: Machine, command: Sequence[str], folder: Path, tell: Tell) -> int:
    services: list[Service] = []
    keeping: list[asyncio.Task[None]] = []
    with asked_to_end() as signals:  # also while all is stopped, which nothing interrupts
        try:
            for device in machine.devices:
                services.append(Service(device, folder, tell))
            children = [service.start() for service in services]
            starting = asyncio.ensure_future(_all_ready(services, children, tell))
            if (status := await _first(starting, signals)) is not None:
                return status
            for service, child in zip(services, children, strict=True):
                keeping.append(asyncio.ensure_future(service.keep(child)))
            return await _until_qemu_ends(Child(command, folder=machine.folder), signals)
        finally:
            for task in keeping:
                task.cancel()
            await asyncio.gather(*(service.stop() for service in services), *keeping, return_exceptions=True)


async def _all_ready(services: Sequence[Service], children: Sequence[Child], tell: Tell) -> int | None:
    """Waits until all programs serve, and returns None; or until one has ended, and returns its status."""
    waiting = {
        asyncio.ensure_future(service.ready(child)): service
        for service, child in zip(services, children, strict=True)
    }
    try:
        patience: float | None = NOTICE
        pending = set(waiting)
        while pending:
            done, pending = await asyncio.wait(pending, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if (status := task.result()) is not None:
                    return _failed(waiting[task], status)
            if not done:
                tell(f"waiting for {', '.join(str(waiting[task].device) for task in pending)}")
                patience = None
    finally:
        for task in waiting:
            task.cancel()
    return None


def _failed(service: Service, status: int) -> int:
    """The status for a program that ended at its start; raises SetupError if it cannot have said why."""
    if status in (1, 2):
        return status
    raise SetupError(f"{service.device} {how_it_ended(status)} at its start")


async def _first(
    starting: "asyncio.Future[int | None]", signals: "asyncio.Queue[signal.Signals]"
) -> int | None:
    """What comes of the start, or the status for the signal that interrupts it."""
    asked = asyncio.ensure_future(signals.get())
    await first_of(starting, asked)
    if starting.done():
        asked.cancel()
        return starting.result()
    starting.cancel()
    return SIGNALLED + asked.result()


async def _until_qemu_ends(qemu: Child, signals: "asyncio.Queue[signal.Signals]") -> int:
    """QEMU's exit status. The first signal asks QEMU to end, further ones kill it."""
    number = signal.SIGTERM
    while True:
        asked = asyncio.ensure_future(signals.get())
        await first_of(qemu.ended, asked)
        asked.cancel()
        if qemu.ended.done():
            status = qemu.ended.result()
            return SIGNALLED - status if status < 0 else status
        qemu.send(number)
        number = signal.SIGKILL
