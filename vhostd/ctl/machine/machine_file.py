"""A set of devices that one keeps, as TOML: `vhostctl run --file`.

qemu = ["qemu-system-x86_64", "-machine", "q35", "-m", "2G"]
display = true
[[disk]]
source = "disk.img"
cache = "direct"
"""

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, TypeAdapter, ValidationError

from vhostd.ctl.machine.devices import Wish
from vhostd.ctl.machine.kinds import KINDS
from vhostd.ctl.regular import open_regular
from vhostd.errors import SetupError, UsageError

QEMU = "qemu"
SOURCE = "source"  # the option that a kind's `source` names


@dataclass(frozen=True)
class MachineFile:
    """What a file has. Its paths are those of its folder."""

    folder: Path
    wishes: tuple[Wish, ...] = ()
    qemu: tuple[str, ...] = ()


def _value(value: object) -> list[str | None]:
    """An option's values: true is an option without a value, a list an option that is given several times."""
    if isinstance(value, list):
        return [each for inner in value for each in _value(inner)]
    if isinstance(value, bool):
        return [None] if value else []
    if isinstance(value, str | int):
        return [_text(str(value))]
    raise ValueError("it is neither a text, a whole number, true, false, nor a list of them")


def _entry(entry: object) -> object:
    """A device: true is one without options, a text is as on the command line, a table has options."""
    if isinstance(entry, str):
        return {"": _text(entry)}
    if entry is True:
        return {}
    if not isinstance(entry, dict):
        raise ValueError("it is neither true, a text, nor a table with options")
    return entry


def _entries(value: object) -> object:
    """The devices of a kind: one, or a list."""
    if value is False:
        return []
    return value if isinstance(value, list) else [value]


def _words(value: object) -> object:
    if not isinstance(value, list):
        raise ValueError('it is not a list of words, such as ["qemu-system-x86_64", "-m", "2G"]')
    return [_text(word) if isinstance(word, str) else word for word in value]


def _text(text: str) -> str:
    if "\0" in text:
        raise ValueError("it has a character that no command line can have")
    return text


Values = Annotated[list[str | None], BeforeValidator(_value)]
Entry = Annotated[dict[str, Values], BeforeValidator(_entry)]
ENTRIES = TypeAdapter(Annotated[list[Entry], BeforeValidator(_entries)])
WORDS = TypeAdapter(Annotated[list[str], BeforeValidator(_words)])


def load(path: str) -> MachineFile:
    """Reads a file; raises SetupError if it cannot be read, UsageError for what is wrong in it."""
    try:
        with open_regular(Path(path)) as file:
            document = tomllib.load(file)
    except OSError as error:
        raise SetupError(f"--file={path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not TOML: {error}") from None
    known = [QEMU, *(kind.name for kind in KINDS)]
    for key in document:
        if key not in known:
            near = get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise UsageError(f"{path}: {key} is unknown: {hint}")
    folder = Path(path).absolute().parent
    words = _checked(path, QEMU, WORDS, document.get(QEMU, []))
    return MachineFile(folder, tuple(_wishes(path, folder, document)), tuple(words))


def _wishes(path: str, folder: Path, document: dict[str, Any]) -> Iterator[Wish]:
    for kind in KINDS:
        for number, entry in enumerate(_checked(path, kind.name, ENTRIES, document.get(kind.name, []))):
            origin = f"{path}: {kind.name}[{number}]"
            text = (entry.pop("", None) or [""])[0] or ""
            if SOURCE in entry and not kind.source:
                raise UsageError(f"{origin}: a {kind.name} has no {SOURCE}")
            options = tuple(
                (kind.source if name == SOURCE else name, value)
                for name, values in entry.items()
                for value in values
            )
            yield Wish(kind, origin, folder, text, options)


def _checked(path: str, key: str, adapter: TypeAdapter[Any], value: object) -> Any:
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = "".join(f"[{each}]" if isinstance(each, int) else f".{each}" for each in first["loc"])
        raise UsageError(f"{path}: {key}{place}: {first['msg'].removeprefix('Value error, ')}") from None
