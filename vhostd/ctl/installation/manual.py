"""Manual pages in the language of man(7), made from the programs' parsers and docstrings."""

import os
import re
import textwrap
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import vhostd
from vhostd import ctl
from vhostd.ctl.installation.commandline import Command, Option, read
from vhostd.ctl.installation.programs import Program
from vhostd.program import start as back_end
from vhostd.program.parser import examples

NAME = re.compile(r"[\w-]*-\w[\w-]*")  # of an option, a feature, or any word with a hyphen
CODE = re.compile("`([^`]+)`")
WIDTH = 72  # characters of a line of text
STATUS = re.compile(r"^status (\d) +(.+(?:\n +.+)*)", re.MULTILINE)


def manual(program: Program, files: Iterable[Path], others: Iterable[str]) -> str:
    """The page of a program. `files` are its files; `others` are the pages for SEE ALSO."""
    command = read(program.parser, program.name)
    statuses = (back_end if program.manifest else ctl).__doc__ or ""
    sections = {
        "NAME": [f"{program.name} \\-", _prose(_summary(command))],
        "SYNOPSIS": [_bold(program.name), *_synopsis(command)],
        "DESCRIPTION": [_prose(command.description), *_paragraph(command.epilog)],
        "OPTIONS": [line for title, options in command.groups.items() for line in _group(title, options)],
        "COMMANDS": [line for inner in command.commands for line in _command(inner)],
        "EXIT STATUS": [line for match in STATUS.finditer(statuses) for line in _item(match[1], match[2])],
        "FILES": [line for path in files for line in (".TP", _literal(str(path)))],
        "EXAMPLES": list(_examples(program.package.__doc__ or "")),
        "SEE ALSO": [f".BR {_literal(name)} (1)" for name in others],
    }
    body = [line for title, lines in sections.items() if any(lines) for line in (f".SH {title}", *lines)]
    return "\n".join([_heading(program.name), *body, ""])


def _heading(name: str) -> str:
    """The title, with the package's date: SOURCE_DATE_EPOCH, or the time of its files.

    No word is hyphenated: it may be a name.
    """
    given = os.environ.get("SOURCE_DATE_EPOCH", "")
    date = int(given) if given.isdecimal() else Path(vhostd.__file__).stat().st_mtime
    day = time.strftime("%Y-%m-%d", time.gmtime(date))
    title = f'.TH {_literal(name.upper())} 1 {day} "vhostd {vhostd.__version__}" "User Commands"'
    return f"{title}\n.nh"


def _summary(command: Command) -> str:
    before, _, after = command.description.rstrip(".").partition(": ")
    text = after or before
    return text[:1].lower() + text[1:]


def _synopsis(command: Command) -> Iterator[str]:
    if command.commands:
        yield "\\fICOMMAND\\fR ..."
    else:
        yield "[\\fIOPTION\\fR ...]"
    yield from (_value(option) for option in command.options if not option.flags)


def _group(title: str, options: Iterable[Option]) -> Iterator[str]:
    yield f".SS {_prose(title.capitalize())}"
    for option in options:
        flags = ", ".join(_bold(flag) for flag in option.flags)
        yield from (".TP", " ".join(part for part in (flags, _value(option)) if part), _prose(option.help))


def _command(command: Command) -> Iterator[str]:
    yield f".SS {_literal(command.name)}"
    yield _prose(command.description)
    for options in command.groups.values():
        yield from list(_group("", options))[1:]
    yield from _paragraph(command.epilog)


def _item(head: str, text: str) -> Iterator[str]:
    yield from (".TP", _bold(head), _prose(text))


def _paragraph(text: str) -> Iterator[str]:
    if text:
        yield from (".PP", _prose(text))


def _examples(docstring: str) -> Iterator[str]:
    if lines := examples(docstring):
        yield from (".RS 4", ".nf", *map(_literal, lines), ".fi", ".RE")


def _value(option: Option) -> str:
    return f"\\fI{_literal(option.value)}\\fR" if option.value else ""


def _bold(text: str) -> str:
    return f"\\fB{_literal(text)}\\fR"


def _prose(text: str) -> str:
    """Text to be filled. Its names stay whole, with hyphens that can be copied and searched."""
    text = CODE.sub(r"\\fB\1\\fR", _escape(text))
    lines = textwrap.wrap(" ".join(text.split()), WIDTH, break_long_words=False, break_on_hyphens=False)
    return NAME.sub(lambda match: match[0].replace("-", "\\-"), "\n".join(map(_guard, lines)))


def _literal(text: str) -> str:
    """Text with hyphens as they are typed."""
    return _guard(_escape(text).replace("-", "\\-"))


def _escape(text: str) -> str:
    return text.replace("\\", "\\e")


def _guard(line: str) -> str:
    """The line, protected from being taken for a macro."""
    return f"\\&{line}" if line.startswith((".", "'")) else line
