"""The files of an installation, and their contents."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from vhostd.ctl.description import load
from vhostd.ctl.installation import completion
from vhostd.ctl.installation.commandline import read
from vhostd.ctl.installation.manual import manual
from vhostd.ctl.installation.places import Places
from vhostd.ctl.installation.programs import Program
from vhostd.ctl.installation.units import unit
from vhostd.errors import SetupError
from vhostd.program.shipped import DESCRIPTIONS, UNITS, shipped


def contents(places: Places, programs: Iterable[Program]) -> dict[Path, bytes]:
    """The files of these programs; raises SetupError for a description that would break libvirt."""
    files: dict[Path, bytes] = {}
    programs = list(programs)
    for path in (*places.folders, *(program.path for program in programs)):
        if not str(path).isprintable():
            raise SetupError(f"no file can name {str(path)!r}: have it elsewhere")
    for program in programs:
        own = dict(_descriptions(places, program)) | dict(_units(places, program))
        others = [each.name for each in programs if each != program]
        page = manual(program, own or [places.record], others)
        files |= own
        files[places.manuals / f"{program.name}.1"] = page.encode()
        files |= _completions(places, program)
    return files


def _descriptions(places: Places, program: Program) -> Iterator[tuple[Path, bytes]]:
    for path in sorted(shipped(*DESCRIPTIONS).glob("*-vhostd-*.json")):
        # A description of an unknown type would keep libvirt from starting any domain that needs a program.
        description = load(path)
        if description.binary.name == program.name:
            document = description.model_copy(update={"binary": program.path}).model_dump(mode="json")
            kept = {name: value for name, value in document.items() if value or name != "tags"}
            yield places.descriptions / path.name, f"{json.dumps(kept, indent=2)}\n".encode()


def _units(places: Places, program: Program) -> Iterator[tuple[Path, bytes]]:
    for path in sorted(shipped(*UNITS).glob(f"{program.name}@.*")):
        yield places.units / path.name, unit(path.read_text(), program.path, user=places.user).encode()


def _completions(places: Places, program: Program) -> dict[Path, bytes]:
    command = read(program.parser, program.name)
    return {
        places.share / "bash-completion/completions" / program.name: completion.bash(command).encode(),
        places.share / "zsh/site-functions" / f"_{program.name}": completion.zsh(command).encode(),
        places.share / "fish/vendor_completions.d" / f"{program.name}.fish": completion.fish(
            command
        ).encode(),
    }
