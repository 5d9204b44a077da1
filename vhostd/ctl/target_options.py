"""The options that say which back-end a command talks to."""

import argparse

PLACE, FOLDER = "{socket}", "{folder}"  # in a command: its socket's path, and a fresh folder


def add_target(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say which back-end it is."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--connect", metavar="PATH", help="connect to the back-end that listens there")
    which.add_argument(
        "--exec", metavar="CMD", help=f"start the back-end with this command; {PLACE} is its socket's path"
    )
