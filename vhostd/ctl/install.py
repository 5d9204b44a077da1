"""Installs descriptions, systemd units, manual pages and completions for the programs.

libvirt reads descriptions in /usr/share/qemu/vhost-user and /etc/qemu/vhost-user. A user's own libvirt
(qemu:///session) also reads those in the user's configuration.
"""

import argparse
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from vhostd.ctl.installation import reach
from vhostd.ctl.installation.contents import contents
from vhostd.ctl.installation.places import ADMINISTRATOR, DISTRIBUTION, Places, system_places, user_places
from vhostd.ctl.installation.placing import missing_folders, place
from vhostd.ctl.installation.programs import Program, installed_programs
from vhostd.ctl.installation.record import Record, installed, is_regular
from vhostd.ctl.output import printable, show
from vhostd.errors import SetupError, UsageError
from vhostd.program.log import write_line


def add_places(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say where an installation is."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--prefix",
        metavar="DIR",
        type=_absolute,
        default=ADMINISTRATOR,
        help=f"default: %(default)s, with descriptions and units in /etc; {DISTRIBUTION} is for --destdir",
    )
    where.add_argument("--user", action="store_true", help="for this user alone, in the home directory")
    parser.add_argument("--destdir", metavar="DIR", type=_absolute, help="a tree to make a package from")


def add_options(parser: argparse.ArgumentParser) -> None:
    add_places(parser)
    parser.add_argument("--types", metavar="TYPE", nargs="+", help="for these types of device; default: all")
    parser.add_argument("--dry-run", action="store_true", help="only print the names of the files")


def run(options: argparse.Namespace) -> int:
    """Writes all files or none, and prints their names."""
    places = places_of(options)
    programs = chosen(options.types, options.destdir)
    files = contents(places, programs)
    for warning in warnings(options, places, programs):
        write_line(f"vhostctl: warning: {warning}")
    if not options.dry_run:
        _write(files, places, options.destdir)
    show(map(printable, files))
    return 0


def places_of(options: argparse.Namespace) -> Places:
    """The places that the options name; raises UsageError if the options contradict each other."""
    if options.prefix == DISTRIBUTION and not options.destdir:
        # A package's files there look like an installation of this command, which would then remove them.
        raise UsageError(f"--prefix={DISTRIBUTION} is for packages, and goes with --destdir")
    if not options.user:
        return system_places(options.prefix)
    if options.destdir:
        raise UsageError("--user and --destdir do not go together: a package has nothing in a home directory")
    return user_places()


def chosen(types: list[str] | None, tree: Path | None) -> list[Program]:
    """The installed programs of these types, or all. Their paths are those outside of the tree."""
    programs = installed_programs()
    known = sorted({program.type for program in programs if program.type})
    if unknown := set(types or ()) - set(known):
        raise UsageError(
            f"--types: no program here is of type {min(unknown)!r}; there are {', '.join(known)}"
        )
    kept = [program for program in programs if not types or not program.manifest or program.type in types]
    return [replace(program, path=_outside(program.path, tree)) for program in kept]


def warnings(options: argparse.Namespace, places: Places, programs: list[Program]) -> Iterator[str]:
    """The obstacles for others to find or to start the programs, one line each."""
    if not places.are_read:
        yield f"libvirt does not look for descriptions in {places.descriptions}"
        yield f"systemd does not look for units in {places.units}"
    if options.user and os.geteuid() == 0:
        yield "libvirt never reads descriptions in root's home directory"
    if options.destdir or options.user:
        return
    account = reach.launcher()
    blocked: dict[str, list[str]] = {}
    for program in programs:
        if program.manifest and (obstacle := reach.obstacle(program.path, account)):
            fault = f"{obstacle} is closed to {account.name}, as whom libvirt starts programs"
            blocked.setdefault(fault, []).append(program.name)
        elif program.manifest and (folder := reach.hidden_folder(program.path)):
            fault = f"the systemd services see nothing in {folder}, where programs are that they start"
            blocked.setdefault(fault, []).append(program.name)
    for fault, names in blocked.items():
        yield f"{fault}: {', '.join(names)}"
    if reach.confinement_is_on():
        for program in programs:
            if program.type == "gpu" and reach.is_confined_out(program.path):
                yield f"AppArmor's profile of libvirtd lets it start what is in /usr/bin, not {program.path}"


def _write(files: dict[Path, bytes], places: Places, tree: Path | None) -> None:
    """Writes the files; without a tree, also their record. Raises SetupError on failure."""
    try:
        if tree:
            files = {inside(tree, path): data for path, data in files.items()}
        record = Record() if tree else installed(places) or Record()
        for path, data in files.items():
            _refuse_foreign(path, data, record)
        obsolete = _obsolete(record, places)
        if not tree:
            record.remove(obsolete)
            record.add(files, missing_folders([*files, places.record]))
            files = files | {places.record: record.dump()}
        place(files, obsolete)
    except OSError as error:
        closed = isinstance(error, PermissionError) and not places.user
        hint = " (be root, or install with --user)" if closed else ""
        fault = f"{error.filename}: {error.strerror}{hint}; nothing was installed"
        raise SetupError(fault) from None


def _obsolete(record: Record, places: Places) -> list[Path]:
    """Files of programs that are gone, and files whose name is no longer used."""
    if not record.files:
        return []
    current = contents(places, chosen(None, None))
    return [path for path in record.files if path not in current and record.is_unchanged(path)]


def _refuse_foreign(path: Path, data: bytes, record: Record) -> None:
    """Raises SetupError for a file that must not be replaced: not written here, and of other content."""
    if not os.path.lexists(path) or record.is_unchanged(path):
        return
    if not is_regular(path) or path.read_bytes() != data:
        fault = "was changed since it was installed" if path in record.files else "is not of this program"
        raise SetupError(f"{path} {fault}: move it away first; nothing was installed")


def inside(tree: Path, path: Path) -> Path:
    """The place of an installation's file in the tree."""
    return tree / path.relative_to("/")


def _outside(path: Path, tree: Path | None) -> Path:
    return Path("/", path.relative_to(tree)) if tree and path.is_relative_to(tree) else path


def _absolute(text: str) -> Path:
    """A folder's absolute path, since the installed files are read from any current folder."""
    if not text:  # from a shell variable that is not set: the current folder is not meant
        raise argparse.ArgumentTypeError("it is empty")
    return Path(os.path.abspath(text))
