"""The options that say which back-end a command talks to, and the words of its program's command line."""

import argparse
import shlex

from vhostd.errors import UsageError

PLACE, FOLDER = "{socket}", "{folder}"  # in a command: its socket's path, and a fresh folder


def add_target(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say which back-end it is."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--connect", metavar="PATH", help="connect to the back-end that listens there")
    add_exec(which)


def add_exec(parser: argparse._ActionsContainer, *, required: bool = False) -> None:
    """Adds the option that starts the back-end."""
    parser.add_argument(
        "--exec",
        metavar="CMD",
        required=required,
        help=f"start the back-end with this command; {PLACE} is its socket's path, {FOLDER} a fresh folder",
    )


def words_of(command: str) -> list[str]:
    """The words of such a command; raises UsageError if it has none."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UsageError(f"--exec: {error}") from None
    if not words:
        raise UsageError("--exec: the command is empty")
    return words


def words_with_socket(command: str) -> list[str]:
    """As `words_of`; raises UsageError, too, if no word has its socket's path."""
    words = words_of(command)
    if not any(PLACE in word for word in words):
        raise UsageError(f"--exec: the command needs {PLACE}, as in 'PROGRAM --socket-path={PLACE}'")
    return words
