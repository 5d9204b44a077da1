"""A parser of command lines that complains in one line, and of the first thing that it does not know."""

import argparse
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile
from typing import Any, NoReturn

from vhostd.errors import UsageError
from vhostd.program.stdout import say


class Help(argparse.HelpFormatter):
    """Breaks no line in the middle of a name, which somebody may copy."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        lines = super()._split_lines(text.replace("-", "\0"), width)
        return [line.replace("\0", "-") for line in lines]


class Parser(argparse.ArgumentParser):
    """Raises UsageError, which becomes a single line, where argparse prints the usage and exits.

    What it is to print it prints, or raises SetupError; argparse would leave that to the end of the program.
    """

    docstring = ""  # of the program's package: its command lines end the help

    def parse_args(self, args: Sequence[str], namespace: Any = None) -> Any:  # type: ignore[override]
        """Raises UsageError. If a program takes options alone, an unknown one is told of before all else.

        argparse would rather tell of what is missing, which is often that very option, misspelt.
        """
        if not all(action.option_strings for action in self._actions):
            options, left = self.parse_known_args(args, namespace)
            for word in left:
                self._refuse(word)
            return options
        for word in args:
            name = word.partition("=")[0]
            if name.startswith("-") and f"-{name}" in self._option_string_actions:  # -socket-path is no -s
                self._refuse(word)
        try:
            return super().parse_args(args, namespace)
        except UsageError:
            for word in self._strange(args):
                self._refuse(word)
            raise

    def format_help(self) -> str:
        text = super().format_help()
        if lines := examples(self.docstring):
            text += "\n".join(["\nexample:", *(f"  {line}".rstrip() for line in lines), ""])
        return text

    def error(self, message: str) -> NoReturn:
        message = re.sub("-[A-Za-z]/(?=--)", "", message)  # the long name is enough
        raise UsageError(message.replace("ignored explicit argument", "it takes no value, and was given"))

    def _refuse(self, word: str) -> NoReturn:
        if word.startswith("-") and word.strip("-"):
            raise UsageError(f"unknown option {word}{self._hint(word)}")
        raise UsageError(f"unexpected word {word}: it is no option, and no option's value")

    def _strange(self, words: Sequence[str]) -> Iterator[str]:
        """The words that are neither options nor their values."""
        is_value = False
        for word in words:
            if is_value:
                is_value = False
            elif (known := self._wants_value(word)) is None:
                yield word
            else:
                is_value = known

    def _wants_value(self, word: str) -> bool | None:
        """Whether the next word is the value of this option; None if this is none that is known."""
        known = self._option_string_actions
        name, equals, _ = word.partition("=")
        if name in known:
            return known[name].nargs != 0 and not equals
        if not word.startswith("-") or word.startswith("--"):
            return None
        for rest in range(len(word) - 2, -1, -1):  # letters, of which the last may have a value behind it
            letter = f"-{word[-1 - rest]}"
            if letter not in known:
                return None
            if known[letter].nargs != 0:
                return not rest
        return False if len(word) > 1 else None

    def _hint(self, word: str) -> str:
        """The known option that is nearest to an unknown one, as a question."""
        names = {option.lstrip("-"): option for option in self._options()}
        near = nearest(word.partition("=")[0].lstrip("-"), names)
        return f": did you mean {names[near]}?" if near else ""

    def _options(self) -> Iterator[str]:
        """All options, and those of all commands."""
        yield from self._option_string_actions
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                for command in action.choices.values():
                    yield from command._option_string_actions

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        # Of --option=-- argparse would make an empty list, which no type and no choice is asked about.
        if action.option_strings and "--" in arg_strings:
            raise UsageError(f"argument {action.option_strings[-1]}: '--' is no value")
        return super()._get_values(action, arg_strings)

    def _print_message(self, message: str, file: object = None) -> None:
        say(message)


def nearest(word: str, names: Iterable[str]) -> str:
    """The name that somebody has meant by a word; empty if none is near."""
    from difflib import get_close_matches  # here, since few starts are wrong

    wanted = word.lower().replace("_", "-")
    if len(wanted) < 2:
        return ""
    known = [name for name in names if len(name) > 1]
    near = [name for name in known if name.startswith(wanted)]
    near = near or [name for name in known if wanted in name.split("-")]
    near = near or get_close_matches(wanted, known, n=1)
    return near[0] if near else ""


def examples(docstring: str) -> list[str]:
    """The lines of the first blocks of a docstring, if they are command lines.

    They are indented in the source. Python 3.13 takes that away if all paragraphs after the first line are.
    """
    blocks = docstring.split("\n\n")[1:]
    found = list(takewhile(re.compile(" +(vhost|qemu)|(vhost-user|qemu-system)-").match, blocks))
    indent = len(found[0]) - len(found[0].lstrip()) if found else 0
    return [line[indent:] for line in "\n\n".join(found).splitlines()]
