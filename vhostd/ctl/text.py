"""What commands print: it cannot garble a terminal, and nobody needs to read it all."""

import os
import sys

from pydantic import BaseModel


def show(text: str) -> None:
    """Prints lines; what the encoding lacks is escaped, and whoever stops reading misses the rest."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except BrokenPipeError:
        # What Python still holds would be written, and fail, at its end.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def show_json(report: BaseModel) -> None:
    """Prints a report as one JSON document."""
    show(report.model_dump_json(indent=2))


def printable(text: object) -> str:
    """The text with all escaped that is not seen as it is: control characters, bytes of unknown encoding."""
    return "".join(each if each.isprintable() else _escaped(each) for each in str(text))


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte, as Python has it in the name of a file
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()
