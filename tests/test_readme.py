"""What the documents say can be done: commands, options and places that they name are there."""

import argparse
import os
import re
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from vhostd.ctl import make_parser as make_vhostctl_parser
from vhostd.ctl.installation.commandline import read
from vhostd.program.main import load
from vhostd.program.options import make_parser

CHECKOUT = Path(__file__).parents[1]
README = CHECKOUT / "README.md"
TEST_COMMAND = "tests/run.sh"
DEMO_COMMAND = "contrib/demo.sh"
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
PROGRAMS: dict[str, str] = PROJECT["entry-points"]["vhostd.programs"]
OTHERS = {"--now", "--one-core"}  # of systemctl and of a benchmark
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
# Words in a code span that are a path of this repository: they begin with one of its folders.
ROOTS = (CHECKOUT, CHECKOUT / "vhostd")
PLACE = re.compile(r"`([\w.<>-]+/[\w./<>-]*)(?:: ([\w.]+))?[^`]*`")
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


def parser_of(program: str) -> argparse.ArgumentParser:
    """The parser of a program of this project."""
    return make_parser(load(import_module(PROGRAMS[program].partition(":")[0]).MANIFEST.device), program)


def named_options(text: str) -> set[str]:
    """The options that a text names; the arrows of a drawing are none."""
    return set(OPTION.findall("\n".join(line for line in text.splitlines() if "-->" not in line)))


def options_of(program: str) -> set[str]:
    return set(parser_of(program)._option_string_actions)


def options_of_vhostctl() -> set[str]:
    """The options of all its commands."""
    program = read(make_vhostctl_parser(), "vhostctl")
    return {flag for each in program.commands for option in each.options for flag in option.flags}


def commands(text: str, program: str) -> list[str]:
    """The command lines of a program in a text, with the lines that continue them."""
    whole = re.sub(r"\\+\n\s*", " ", text)
    return [line for line in whole.splitlines() if re.search(rf"(^|[\s/`]){program}\s", line)]


def test_ci_runs_the_command_of_the_readme() -> None:
    readme = README.read_text()
    assert re.search(rf"^\s*(\$ )?{re.escape(TEST_COMMAND)}\b", readme, re.MULTILINE)
    steps = (CHECKOUT / ".ci/run").read_text().splitlines()
    assert steps[-1].removesuffix(" </dev/null") == f"exec bash {TEST_COMMAND}"


def test_the_readme_names_the_demo() -> None:
    assert re.search(rf"^\s*(\$ )?{re.escape(DEMO_COMMAND)}\b", README.read_text(), re.MULTILINE)


@pytest.mark.parametrize(
    "command", [TEST_COMMAND, DEMO_COMMAND, ".ci/run", "contrib/setup.sh", "contrib/debian-package.sh"]
)
def test_commands_are_there_and_executable(command: str) -> None:
    assert os.access(CHECKOUT / command, os.X_OK)


@pytest.mark.parametrize("program", PROGRAMS)
def test_options_in_a_device_s_docstring_exist(program: str) -> None:
    text = import_module(PROGRAMS[program].partition(":")[0]).__doc__ or ""
    assert commands(text, program), "the docstring shows no command line"
    assert named_options(text) <= options_of(program)


def test_options_in_the_readme_exist() -> None:
    text = README.read_text()
    known = OTHERS | options_of_vhostctl() | set().union(*(options_of(program) for program in PROGRAMS))
    for program in PROGRAMS:
        named = named_options("\n".join(commands(text, program)))
        assert named <= options_of(program), program
    assert named_options(text) <= known


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_readme_names_every_option(program: str) -> None:
    options = {option for option in options_of(program) if option.startswith("--")}
    assert options <= named_options(README.read_text())


def test_the_readme_names_every_option_of_vhostctl() -> None:
    options = {option for option in options_of_vhostctl() if option.startswith("--")}
    assert options <= named_options(README.read_text())


@pytest.mark.parametrize("program", [*PROGRAMS, *PROJECT["scripts"]])
def test_the_readme_names_each_program(program: str) -> None:
    assert program in README.read_text()


@pytest.mark.parametrize("document", ["README.md", "HACKING.md", "ARCHITECTURE.md"])
def test_places_in_the_documents_exist(document: str) -> None:
    """A place may begin with a layer, and end with what is to be found there: `wire/rows.py: Row.admit`."""
    text = (CHECKOUT / document).read_text()
    links = {(link, "") for link in LINK.findall(text)}
    folders = {entry.name for root in ROOTS for entry in root.iterdir() if entry.is_dir()}
    named = {(place, name) for place, name in PLACE.findall(text) if place.partition("/")[0] in folders}
    missing = {place for place, name in named | links if not any(has(root, place, name) for root in ROOTS)}
    assert not missing


def has(root: Path, place: str, name: str) -> bool:
    """Whether there is such a place below the folder, and all parts of the name are in it."""
    found = [path for path in root.glob(pattern(place)) if path.is_file() or not name]
    parts = name.split(".") if name else []
    return any(all(re.search(rf"\b{part}\b", path.read_text()) for part in parts) for path in found)


def pattern(place: str) -> str:
    """A place as a glob pattern: documents write `vhost_user_<x>.py` for any."""
    return re.sub(r"<\w+>|\*", "*", place.rstrip("/"))
