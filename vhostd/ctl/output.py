"""The output of commands: it cannot garble a terminal, and a reader may close the pipe early."""

import argparse
import sys
from collections.abc import Iterable
from typing import Any, get_args

from pydantic import BaseModel

from vhostd.program.stdout import say


def show(lines: Iterable[str]) -> None:
    """Prints lines, unless stdout is closed; raises SetupError if they cannot be written."""
    text = "".join(f"{line}\n" for line in lines)
    if sys.stdout is not None:  # it is None if stdout was closed
        say(text)


def add_json(parser: argparse.ArgumentParser, report: type[BaseModel]) -> None:
    """Adds the option --json, and a sentence in the help that names the JSON document's members."""
    parser.add_argument("--json", action="store_true", help="print a JSON document")
    sentence = f"The JSON document has {_members(report)}; later versions may add to them."
    parser.epilog = " ".join(filter(None, (parser.epilog, sentence)))


def _members(model: type[BaseModel]) -> str:
    """The names of a model's members. For a list of objects the names of their members follow."""
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
    """The text with control characters and bytes of unknown encoding escaped."""
    return "".join(each if each.isprintable() else _escaped(each) for each in str(text))


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte of a file name, as Python represents it
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()
