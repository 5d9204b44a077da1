"""A parser of command lines that complains in one line."""

import argparse
from typing import Any, NoReturn

from vhostd.errors import UsageError
from vhostd.program.stdout import say


class Parser(argparse.ArgumentParser):
    """Raises UsageError, which becomes a single line, where argparse prints the usage and exits.

    What it is to print it prints, or raises SetupError; argparse would leave that to the end of the program.
    """

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        # Of --option=-- argparse would make an empty list, which no type and no choice is asked about.
        if action.option_strings and "--" in arg_strings:
            raise UsageError(f"argument {'/'.join(action.option_strings)}: '--' is no value")
        return super()._get_values(action, arg_strings)

    def _print_message(self, message: str, file: object = None) -> None:
        say(message)
