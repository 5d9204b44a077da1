"""Parsers whose pages and completions are looked at: of every program, and one that has everything."""

import argparse
import sys
from pathlib import Path

import pytest

from tests.ctl.staging import put_programs
from tests.programs import PROGRAMS
from vhostd.ctl.installation.programs import Program, installed_programs

NAMES = (*PROGRAMS, "vhostctl")


def program(name: str, folder: Path, patch: pytest.MonkeyPatch) -> Program:
    """A program of this project, as installed in a folder."""
    put_programs(folder, *PROGRAMS)
    patch.setattr(sys, "argv", [str(folder / "vhostctl")])
    return next(each for each in installed_programs() if each.name == name)


def tool() -> argparse.ArgumentParser:
    """A program with commands, and with all that must be escaped somewhere."""
    parser = argparse.ArgumentParser("a-tool", description="Does `this`.", epilog="It's the end.")
    parser.add_argument("--verbose", "-v", action="store_true", help='say [more]: it\'s $HOME `id` \\ "all"')
    parser.add_argument("--hidden", help=argparse.SUPPRESS)
    commands = parser.add_subparsers()
    run = commands.add_parser("run", description="Runs `a: file`.")
    run.add_argument("file", metavar="FILE", help="what to run")
    run.add_argument("--colour", choices=("red", "green"), default="red", help="default: %(default)s")
    run.add_argument("--into", metavar="DIR", help=".a folder")
    run.add_argument("--group", metavar="GROUP", help="'a group")
    run.add_argument("--number", metavar="N", nargs="+", help="numbers")
    commands.add_parser("stop", description="Stops it.")
    return parser
