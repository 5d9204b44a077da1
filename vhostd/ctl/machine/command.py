"""QEMU's command line with our devices."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vhostd.ctl.machine.devices import Device
from vhostd.ctl.machine.fit import check, display_arguments, has_vga
from vhostd.ctl.machine.memory import memory_arguments
from vhostd.ctl.machine.words import Words, is_qemu
from vhostd.errors import SetupError

RECONNECT = 1000  # milliseconds between QEMU's tries to connect again
MILLISECONDS = (9, 2)  # the first version of QEMU that takes them
PATIENCE = 10.0  # seconds that QEMU may take to tell its version
VERSION = re.compile(r"QEMU emulator version (\d+)\.(\d+)")
PREFIX = "vhostctl-"  # of the ids that QEMU knows our devices by


@dataclass(frozen=True)
class Machine:
    """A virtual machine: QEMU's command line, the folder whose paths it has, and our devices."""

    words: Words
    folder: Path
    devices: Sequence[Device]

    def check(self) -> list[str]:
        """QEMU's arguments for memory and display; raises UsageError for what does not go together."""
        check(self.words)
        return [*memory_arguments(self.words), *self._display()]

    @property
    def is_unseen(self) -> bool:
        """Whether there is a display of ours, and no graphical session for QEMU's window."""
        return self._display()[-2:] == ["-display", "none"]

    def _display(self) -> list[str]:
        return display_arguments(self.words) if any(each.kind.is_display for each in self.devices) else []

    def find_qemu(self) -> Path:
        """The file of the first word; raises SetupError if there is none."""
        word = self.words.start[0]
        path = shutil.which(self.folder / word if os.sep in word else word)
        if path is None:
            raise SetupError(f"{word} is not installed, or is no program")
        return Path(path)

    def command(self, sockets: Path, version: tuple[int, int] = MILLISECONDS) -> list[str]:
        """QEMU's command line. The programs listen in the folder `sockets`."""
        self._check_version(version)
        added = [word for device in self.devices for word in self._device(device, sockets, version)]
        return [*self.words.start, *self.check(), *added, *self.words.rest]

    def _check_version(self, version: tuple[int, int]) -> None:
        """Raises SetupError for a QEMU that is too old for one of our devices."""
        for kind in (device.kind for device in self.devices):
            if version < kind.since and is_qemu(self.words.program):
                since, found = (".".join(map(str, numbers)) for numbers in (kind.since, version))
                raise SetupError(f"--{kind.name} needs QEMU {since}, and {self.words.program} is {found}")

    def _device(self, device: Device, sockets: Path, version: tuple[int, int]) -> Iterator[str]:
        """A device's arguments."""
        kind = device.kind
        identity = f"{PREFIX}{device.name}"
        chardev = f"socket,id={identity},path={str(device.socket(sockets)).replace(',', ',,')}"
        if kind.comes_back:
            seconds, milliseconds = f"reconnect={RECONNECT // 1000}", f"reconnect-ms={RECONNECT}"
            chardev += f",{milliseconds if version >= MILLISECONDS else seconds}"
        yield from ("-chardev", chardev)
        given = {name: device.value(option) for option, name in {**kind.properties, **kind.qemus}.items()}
        more = [f"{name}={value}" for name, value in given.items() if value is not None]
        if device is self._boots():
            more.append("bootindex=1")
        first = device is next(each for each in self.devices if each.kind is kind)
        driver = kind.vga if kind.vga and first and has_vga(self.words) else kind.device
        if kind.netdev:
            queues = int(device.value(kind.netdev) or 1)
            yield from ("-netdev", f"vhost-user,id={identity}-netdev,chardev={identity},queues={queues}")
            vectors = [f"mq=on,vectors={2 * queues + 2}"] if queues > 1 else []  # one for each queue, and two
            more = [f"netdev={identity}-netdev", *more, *vectors]
        else:
            more = [f"chardev={identity}", *more]
        yield from ("-device", ",".join([driver, f"id={identity}", *more]))

    def _boots(self) -> Device | None:
        """The disk to boot from: our first, unless the user says from what."""
        named = any("bootindex" in value for value in self.words.values("device"))
        if named or self.words.has("boot", "kernel"):
            return None
        return next((device for device in self.devices if device.kind.boots), None)


def qemu_version(words: Words, folder: Path) -> tuple[int, int]:
    """The version that QEMU tells. Nothing else is asked for it, such as a script that starts QEMU."""
    if not is_qemu(words.program):
        return MILLISECONDS
    try:
        done = subprocess.run(
            [words.program, "--version"],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=PATIENCE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return MILLISECONDS
    found = VERSION.search(done.stdout.decode(errors="replace"))
    return (int(found[1]), int(found[2])) if found else MILLISECONDS
