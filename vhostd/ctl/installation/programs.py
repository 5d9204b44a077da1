"""The programs of this project that are installed: which there are, where they lie, and what they take."""

import sys
import sysconfig
from argparse import ArgumentParser
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, PackageNotFoundError, distribution
from pathlib import Path

from vhostd.ctl import make_parser
from vhostd.errors import SetupError
from vhostd.program import options
from vhostd.virtio.device import Device

CTL = "vhostctl"


@dataclass(frozen=True)
class Program:
    """One program: its path, and the device that it is, or None if that is this very program."""

    name: str
    path: Path
    device: type[Device] | None

    @property
    def type(self) -> str | None:
        """The device's type, as in descriptions; None if they have no word for it."""
        return self.device.kind.description_type if self.device else None

    @property
    def parser(self) -> ArgumentParser:
        """The parser of its command line."""
        parser = options.make_parser(self.device) if self.device else make_parser()
        parser.prog = self.name
        return parser


def installed_programs() -> list[Program]:
    """All that lie beside this program; raises SetupError if none does."""
    folder = _folder()
    found = [
        Program(entry.name, folder / entry.name, device_of(entry))
        for entry in _entries()
        if (folder / entry.name).is_file()
    ]
    if not any(program.device for program in found):
        raise SetupError(f"there is none of vhostd's back-end programs in {folder}")
    return found


def device_of(entry: EntryPoint) -> type[Device] | None:
    """The device in the module that a program's entry point names."""
    classes = (each for each in vars(import_module(entry.module)).values() if isinstance(each, type))
    return next((each for each in classes if issubclass(each, Device) and each is not Device), None)


def _entries() -> Iterator[EntryPoint]:
    try:
        yield from distribution("vhostd").entry_points.select(group="console_scripts")
    except PackageNotFoundError:
        raise SetupError("vhostd is not installed: do that first, with pip or from its package") from None


def _folder() -> Path:
    """The folder of this program as it was called, or else the one where Python installs programs."""
    called = Path(sys.argv[0]).absolute()
    return called.parent if called.name == CTL else Path(sysconfig.get_path("scripts"))
