"""A machine as shell commands, to be copied: they do what `vhostctl run` does, except for its care."""

import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from vhostd.ctl.machine.command import Machine
from vhostd.ctl.machine.devices import Device


def script(machine: Machine, command: Sequence[str], folder: Path) -> Iterator[str]:
    """The lines. The programs listen in `folder`, which the first line makes. `command` is QEMU's."""
    yield shlex.join(["mkdir", "-m", "0700", str(folder)])
    for device in machine.devices:
        words = [str(device.program), f"--socket-path={device.socket(folder)}", *device.arguments(folder)]
        yield f"{_in(device.folder, words)} & {device.name}=$!"
    for device in machine.devices:
        yield _wait(device, folder)
    yield _in(machine.folder, command)
    if machine.devices:
        names = " ".join(f"${device.name}" for device in machine.devices)
        yield f"kill {names}; wait {names}"
    yield shlex.join(["rmdir", str(folder)])


def _wait(device: Device, folder: Path) -> str:
    """Waits while the program runs, and does not listen yet."""
    missing = f"[ ! -S {shlex.quote(str(device.socket(folder)))} ]"
    return f"while {missing} && kill -0 ${device.name} 2>/dev/null; do sleep 0.1; done"


def _in(folder: Path, words: Sequence[str]) -> str:
    line = shlex.join(words)
    return line if folder == Path.cwd() else f"(cd {shlex.quote(os.fspath(folder))} && exec {line})"
