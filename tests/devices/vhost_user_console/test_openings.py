"""Hearing that a file is opened, or closed."""

import select
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from vhost_user_console.openings import Openings


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.touch()
    return path


@pytest.fixture
def openings(path: Path) -> Iterator[Openings]:
    with closing(Openings(str(path))) as openings:
        yield openings


def is_readable(openings: Openings) -> bool:
    poll = select.poll()
    poll.register(openings, select.POLLIN)
    return bool(poll.poll(0))


def test_an_opening_is_heard(openings: Openings, path: Path) -> None:
    assert not is_readable(openings)
    path.read_bytes()
    assert is_readable(openings)


@pytest.mark.parametrize("mode", ["rb", "ab"])
def test_an_end_is_heard(openings: Openings, path: Path, mode: str) -> None:
    with path.open(mode):
        openings.clear()
        assert not is_readable(openings)
    assert is_readable(openings)


def test_it_is_silent_until_the_next_one(openings: Openings, path: Path) -> None:
    for _ in range(3):
        path.read_bytes()
        path.write_bytes(b"other openings")
    openings.clear()
    assert not is_readable(openings)
    openings.clear()
    path.read_bytes()
    assert is_readable(openings)


def test_other_files_are_not_heard(openings: Openings, path: Path) -> None:
    path.with_name("other").touch()
    path.stat()
    assert not is_readable(openings)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Openings(str(tmp_path / "file"))
