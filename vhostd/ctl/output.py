"""What commands print: it cannot garble a terminal, and nobody needs to read it all."""

import argparse
import sys
from collections.abc import Iterable
from typing import Any, get_args

from pydantic import BaseModel

from vhostd.program.stdout import say


def show(lines: Iterable[str]) -> None:
    """Prints lines, if there is anybody to read them; raises SetupError if they cannot be written."""
    text = "".join(f"{line}\n" for line in lines)
    if sys.stdout is not None:  # as Python has it when it is closed: nobody wants to know
        say(text)


def add_json(parser: argparse.ArgumentParser, report: type[BaseModel]) -> None:
    """The option for a JSON document, and for whoever reads one a sentence that names its members."""
    parser.add_argument("--json", action="store_true", help="print a JSON document")
    sentence = f"The JSON document has {_members(report)}; later versions may add to them."
    parser.epilog = " ".join(filter(None, (parser.epilog, sentence)))


def _members(model: type[BaseModel]) -> str:
    """The names of a model's members, each with the names of those in it if it is a list of objects."""
    return ", ".join(
        name + "".join(f" (each with {_members(inner)})" for inner in _models(field.annotation))
        for name, field in model.model_fields.items()
    )


def _models(annotation: Any) -> list[type[BaseModel]]:
    return [each for each in get_args(annotation) if isinstance(each, type) and issubclass(each, BaseModel)]


def show_json(report: BaseModel) -> None:
    """Prints a report as one JSON document."""
    show([report.model_dump_json(indent=2)])


def printable(text: object) -> str:
    """The text with all escaped that is not seen as it is: control characters, bytes of unknown encoding."""
    return "".join(each if each.isprintable() else _escaped(each) for each in str(text))


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte, as Python has it in the name of a file
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()
