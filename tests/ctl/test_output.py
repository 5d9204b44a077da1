"""What is printed is safe to look at."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from tests.programs import executable
from vhostd.ctl.output import add_json, printable, show


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/usr/bin/gpu", "/usr/bin/gpu"),
        ("écran 🖥", "écran 🖥"),
        ("a\nb\t", "a\\nb\\t"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\u202ered", "\\u202ered"),
        (os.fsdecode(b"a\xff"), "a\\xff"),
        ("\ud800", "\\ud800"),
    ],
)
def test_what_is_not_seen_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text(st.characters()))
def test_nothing_garbles_a_terminal(text: str) -> None:
    assert printable(text).isprintable()
    printable(text).encode()


def test_an_encoding_that_lacks_something(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with open(tmp_path / "file", "w", encoding="ascii") as file:
        monkeypatch.setattr(sys, "stdout", file)
        show(["écran"])
    assert (tmp_path / "file").read_bytes() == b"\\xe9cran\n"


def test_nobody_needs_to_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    show(["a line"])


@pytest.mark.parametrize("arguments", [["list"], ["list", "--json"], ["install", "--dry-run"]])
def test_where_nothing_can_be_written(arguments: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [executable("vhostctl"), *arguments], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "vhostctl: error: stdout: No space left on device"
    assert "Traceback" not in done.stderr


class Inner(BaseModel):
    path: str
    seconds: float | None


class Outer(BaseModel):
    works: bool
    entries: tuple[Inner, ...]


def test_the_members_of_a_document_are_told() -> None:
    parser = argparse.ArgumentParser(epilog="Before.")
    add_json(parser, Outer)
    members = "works, entries (each with path, seconds)"
    assert parser.epilog == f"Before. The JSON document has {members}; later versions may add to them."
    assert parser.parse_args(["--json"]).json
