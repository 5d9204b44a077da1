"""The installed programs of this project: their paths, types and options."""

import sys
import sysconfig
from argparse import ArgumentParser
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, PackageNotFoundError, distribution
from pathlib import Path
from types import ModuleType

from vhostd.ctl import make_parser
from vhostd.errors import SetupError
from vhostd.program.manifest import Manifest

CTL = "vhostctl"


@dataclass(frozen=True)
class Program:
    """One program: its path, its package, and its manifest, which is None for `vhostctl` itself."""

    name: str
    path: Path
    package: ModuleType
    manifest: Manifest | None

    @property
    def type(self) -> str | None:
        """The device's type, as in descriptions; None for `vhostctl` itself."""
        return self.manifest.type if self.manifest else None

    @property
    def parser(self) -> ArgumentParser:
        """The parser of its command line."""
        if self.manifest:
            return _parser_of(self.manifest, self.name)
        parser = make_parser()
        parser.prog = self.name
        return parser


def installed_programs() -> list[Program]:
    """All programs in this program's folder; raises SetupError if there is no back-end program."""
    folder = programs_folder()
    found = [_program(entry, folder / entry.name) for entry in entries() if (folder / entry.name).is_file()]
    if not any(program.manifest for program in found):
        raise SetupError(f"there is none of vhostd's back-end programs in {folder}")
    return found


def option_parser(name: str) -> ArgumentParser:
    """The parser of a back-end program's command line."""
    entry = next(each for each in entries() if each.name == name)
    return _parser_of(import_module(entry.module).MANIFEST, name)


def _program(entry: EntryPoint, path: Path) -> Program:
    package = import_module(entry.module)
    return Program(entry.name, path, package, getattr(package, "MANIFEST", None))


def _parser_of(manifest: Manifest, program: str) -> ArgumentParser:
    # Here, since an event loop comes with it, which no other command of vhostctl needs.
    from vhostd.program.main import load
    from vhostd.program.options import make_parser

    return make_parser(load(manifest.device), program)


def entries() -> Iterator[EntryPoint]:
    """The back-end programs and `vhostctl`, whether their files are there or not; raises SetupError."""
    try:
        known = distribution("vhostd").entry_points
    except PackageNotFoundError:
        raise SetupError("vhostd is not installed: do that first, with pip or from its package") from None
    yield from known.select(group="vhostd.programs")
    yield from known.select(group="console_scripts", name=CTL)


def programs_folder() -> Path:
    """The folder that this program was called from; else the folder where Python installs programs."""
    called = Path(sys.argv[0]).absolute()
    return called.parent if called.name == CTL else Path(sysconfig.get_path("scripts"))
