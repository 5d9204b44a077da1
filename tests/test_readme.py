"""What the pages say can be done: commands, options and places that they name are there."""

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
DOCS = CHECKOUT / "docs"
PAGES = [README, *sorted(DOCS.glob("*.md"))]
MOST_LINES = 200  # of the README: who wants more follows its links
TEST_COMMAND = "tests/run.sh"
DEMO_COMMAND = "contrib/demo.sh"
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
PROGRAMS: dict[str, str] = PROJECT["entry-points"]["vhostd.programs"]
# Options of others: systemctl, our scripts, benchmarks.
OTHERS = {"--now", "--times", "--yes", "--quick", "--one-core", "--runas", "--foreground"}
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
ROW = re.compile(r"^\| `--.*?(?= \|)", re.MULTILINE)  # of a table of options: its first cell
SECTION = re.compile(r"^## (.*)$", re.MULTILINE)
# Words in a code span that are a path of this repository: they begin with one of its folders.
ROOTS = (CHECKOUT, CHECKOUT / "vhostd")
PLACE = re.compile(r"`([\w.<>-]+/[\w./<>-]*)(?:: ([\w.]+))?[^`]*`")


def parser_of(program: str) -> argparse.ArgumentParser:
    """The parser of a program of this project."""
    return make_parser(load(import_module(PROGRAMS[program].partition(":")[0]).MANIFEST.device), program)


def named_options(text: str) -> set[str]:
    """The options that a text names; the arrows of a drawing are none."""
    return set(OPTION.findall("\n".join(line for line in text.splitlines() if "-->" not in line)))


def explained_options(text: str) -> set[str]:
    """The options that have a row in a table of the text."""
    return named_options("\n".join(ROW.findall(text)))


def options_of(program: str) -> set[str]:
    return {option for option in parser_of(program)._option_string_actions if option.startswith("--")}


def shared_options() -> set[str]:
    """The options that every program has."""
    return set.intersection(*map(options_of, PROGRAMS))


def options_of_vhostctl() -> dict[str, set[str]]:
    """The options of each of its commands."""
    program = read(make_vhostctl_parser(), "vhostctl")
    return {
        command.name: {flag for option in command.options for flag in option.flags if flag.startswith("--")}
        for command in program.commands
    }


def sections(text: str) -> dict[str, str]:
    """The text below each heading."""
    _, *rest = SECTION.split(text)
    return dict(zip(rest[::2], rest[1::2], strict=True))


def commands(text: str, program: str) -> list[str]:
    """The command lines of a program in a text, with the lines that continue them."""
    whole = re.sub(r"\\+\n\s*", " ", text)
    return [line for line in whole.splitlines() if re.search(rf"(^|[\s/`]){program}\s", line)]


def page_name(page: Path) -> str:
    return page.name


def test_ci_runs_the_command_of_the_readme() -> None:
    readme = README.read_text()
    assert re.search(rf"^\s*(\$ )?{re.escape(TEST_COMMAND)}\b", readme, re.MULTILINE)
    steps = (CHECKOUT / ".ci/run").read_text().splitlines()
    assert steps[-1].removesuffix(" </dev/null") == f"exec bash {TEST_COMMAND}"


def test_the_readme_names_the_demo() -> None:
    assert re.search(rf"^\s*(\$ )?{re.escape(DEMO_COMMAND)}\b", README.read_text(), re.MULTILINE)


def test_the_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= MOST_LINES


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


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_options_in_a_page_exist(page: Path) -> None:
    """Each has its row in some page; that those are right is for the tests below."""
    text = page.read_text()
    explained = set[str]().union(*(explained_options(each.read_text()) for each in PAGES))
    assert named_options(text) <= explained | OTHERS
    for program in PROGRAMS:
        assert named_options("\n".join(commands(text, program))) <= options_of(program), program


def test_a_page_explains_the_options_of_all_programs() -> None:
    assert explained_options((DOCS / "programs.md").read_text()) == shared_options()


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_device_s_page_explains_its_own_options(program: str) -> None:
    text = (DOCS / f"{program}.md").read_text()
    assert explained_options(text) == options_of(program) - shared_options()
    assert commands(text, program), "the page shows no command line"


@pytest.mark.parametrize("command", options_of_vhostctl())
def test_vhostctl_s_page_explains_the_options_of_each_command(command: str) -> None:
    found = sections((DOCS / "vhostctl.md").read_text())
    section = found["install" if command == "uninstall" else command]
    explained, options = explained_options(section), options_of_vhostctl()[command] - {"--help"}
    assert explained >= options if command == "uninstall" else explained == options


def test_the_readme_names_each_program() -> None:
    text = README.read_text()
    assert all(program in text for program in (*PROGRAMS, *PROJECT["scripts"]))


@pytest.mark.parametrize("document", ["HACKING.md", "ARCHITECTURE.md", *PAGES])
def test_places_in_the_documents_exist(document: str | Path) -> None:
    """A place may begin with a layer, and end with what is to be found there: `wire/rows.py: Row.admit`."""
    text = (CHECKOUT / document).read_text()
    folders = {entry.name for root in ROOTS for entry in root.iterdir() if entry.is_dir()} - {"build"}
    named = {(place, name) for place, name in PLACE.findall(text) if place.partition("/")[0] in folders}
    assert not {place for place, name in named if not any(has(root, place, name) for root in ROOTS)}


def has(root: Path, place: str, name: str) -> bool:
    """Whether there is such a place below the folder, and all parts of the name are in it."""
    found = [path for path in root.glob(pattern(place)) if path.is_file() or not name]
    parts = name.split(".") if name else []
    return any(all(re.search(rf"\b{part}\b", path.read_text()) for part in parts) for path in found)


def pattern(place: str) -> str:
    """A place as a glob pattern: documents write `vhost_user_<x>.py` for any."""
    return re.sub(r"<\w+>|\*", "*", place.rstrip("/"))
