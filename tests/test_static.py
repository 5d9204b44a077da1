"""What the tools say of the whole tree. They are part of the suite: one that is missing is a failure."""

import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "command",
    ["ruff check", "ruff format --check", "mypy", "vulture"],
    ids=["ruff", "format", "mypy", "vulture"],
)
def test_static_check(command: str) -> None:
    tool, *arguments = command.split()
    done = subprocess.run(
        [sys.executable, "-m", tool, *arguments], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"
