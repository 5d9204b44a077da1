"""What is printed is safe to look at."""

import io
import os
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vhostd.ctl.text import printable, show


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


@settings(deadline=None)
@given(st.text(st.characters()))
def test_nothing_garbles_a_terminal(text: str) -> None:
    assert printable(text).isprintable()
    printable(text).encode()


def test_an_encoding_that_lacks_something(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding="ascii"))
    show("écran")
    assert buffer.getvalue() == b"\\xe9cran\n"
