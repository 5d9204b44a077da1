"""The page about the front-end: its examples pass, and it names what there is."""

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vhostd import frontend

CHECKOUT = Path(__file__).parents[2]
PAGE = CHECKOUT / "docs/testing-a-backend.md"
EXAMPLE = re.compile(r"^```\n((?:import|from|def) .*?)^```$", re.MULTILINE | re.DOTALL)
LINES = 20  # of the first example, beside imports and empty ones


def examples() -> list[str]:
    """The page's examples, which belong into one file."""
    return EXAMPLE.findall(PAGE.read_text())


def test_the_examples_pass(tmp_path: Path) -> None:
    file = tmp_path / "test_backend.py"
    file.write_text("\n\n".join(examples()))
    programs = os.path.dirname(sys.executable)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)],
        env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(re.findall('^def test_', file.read_text(), re.MULTILINE))} passed" in done.stdout


def test_twenty_lines_are_enough() -> None:
    lines = [line for line in examples()[0].splitlines() if line and not line.startswith(("import", "from"))]
    assert len(lines) <= LINES


@pytest.mark.parametrize("name", frontend.__all__)
def test_what_is_public_is_on_the_page_and_has_docstrings(name: str) -> None:
    public = getattr(frontend, name)
    assert f"`{name}`" in PAGE.read_text()
    assert inspect.getdoc(public)
    if isinstance(public, type):
        undocumented = [
            each
            for each, member in vars(public).items()
            if not each.startswith("_") and callable(member) and not inspect.getdoc(member)
        ]
        assert not undocumented
