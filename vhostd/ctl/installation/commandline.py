"""The declarations of a parser, as data for manual pages and completions.

argparse has no public way to read them. The private parts that are used here are the same in all versions.
"""

import argparse
import re
from collections.abc import Iterator
from dataclasses import dataclass

FILES = {"PATH", "FILE", "BINARY", "IMAGE"}  # metavars of options whose value is a file
FOLDERS = {"DIR"}
GROUPS = {"GROUP"}
PROGRAMS = {"QEMU"}  # a program and its arguments, to the end of the line


@dataclass(frozen=True)
class Option:
    """An option, or a positional argument, which has no flags. `value` is empty if the option takes none."""

    flags: tuple[str, ...]
    value: str
    help: str
    choices: tuple[str, ...]

    @property
    def kind(self) -> str:
        """The first word of its value."""
        found = re.search(r"[A-Za-z]+", self.value)
        return found[0] if found else ""


@dataclass(frozen=True)
class Command:
    """A program, or one command of a program with commands."""

    name: str
    description: str
    epilog: str
    groups: dict[str, list[Option]]
    commands: tuple["Command", ...]

    @property
    def options(self) -> list[Option]:
        """The options of all groups."""
        return [option for group in self.groups.values() for option in group]


def read(parser: argparse.ArgumentParser, name: str) -> Command:
    """Reads the parser of a program, and the parsers of its commands."""
    formatter = parser._get_formatter()
    groups = {}
    for group in parser._action_groups:
        found = [_option(formatter, action) for action in group._group_actions if _is_shown(action)]
        if found:
            groups[group.title or ""] = found
    subcommands = tuple(read(inner, command) for command, inner in _commands(parser))
    return Command(name, parser.description or "", parser.epilog or "", groups, subcommands)


def _option(formatter: argparse.HelpFormatter, action: argparse.Action) -> Option:
    value = ""
    if action.nargs != 0:
        named = formatter._get_default_metavar_for_optional if action.option_strings else None
        default = named(action) if named else formatter._get_default_metavar_for_positional(action)
        remainder = action.nargs == argparse.REMAINDER  # which argparse shows without its name
        value = f"{action.metavar or default} ..." if remainder else formatter._format_args(action, default)
    text = formatter._expand_help(action) if action.help else ""
    return Option(tuple(action.option_strings), value, text, tuple(map(str, action.choices or ())))


def _is_shown(action: argparse.Action) -> bool:
    return action.help is not argparse.SUPPRESS and not isinstance(action, argparse._SubParsersAction)


def _commands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()
