"""A link to a terminal."""

import os
from pathlib import Path

import pytest

from vhost_user_console.link_file import LinkFile
from vhostd.errors import SetupError


def test_it_is_made_and_removed(tmp_path: Path) -> None:
    link = LinkFile(str(tmp_path / "link"), "/dev/pts/12345")
    assert os.readlink(tmp_path / "link") == "/dev/pts/12345"
    link.remove()
    assert os.listdir(tmp_path) == []


def test_one_that_was_left_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/dev/pts/54321")
    link = LinkFile(str(tmp_path / "link"), "/dev/pts/12345")
    assert os.readlink(tmp_path / "link") == "/dev/pts/12345"
    link.remove()


def test_one_whose_terminal_is_there_stays(tmp_path: Path) -> None:
    """Its program has it. When that has ended, somebody else's terminal may get the number."""
    path = tmp_path / "link"
    master, slave = os.openpty()
    terminal = os.ttyname(slave)
    link = LinkFile(str(path), terminal)
    with pytest.raises(SetupError, match=f"it leads to {terminal}, which another program has"):
        LinkFile(str(path), "/dev/pts/12345")
    assert os.readlink(path) == terminal
    while os.stat(terminal).st_ctime_ns <= os.lstat(path).st_ctime_ns:
        os.chmod(terminal, 0o600)  # as if it was made later
    other = LinkFile(str(path), "/dev/pts/12345")
    link.remove()  # which is the other's now
    assert os.readlink(path) == "/dev/pts/12345"
    other.remove()
    os.close(master)
    os.close(slave)


def test_nothing_else_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link"):
        with pytest.raises(SetupError, match="what is there is no link to a terminal"):
            LinkFile(str(tmp_path / name), "/dev/pts/12345")
    assert (tmp_path / "link").read_text() == "kept"


def test_what_has_replaced_it_stays(tmp_path: Path) -> None:
    link = LinkFile(str(tmp_path / "link"), "/dev/pts/12345")
    (tmp_path / "link").unlink()
    (tmp_path / "link").write_text("another's")
    link.remove()
    assert (tmp_path / "link").read_text() == "another's"


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="No such file or directory"):
        LinkFile(str(tmp_path / "none" / "link"), "/dev/pts/12345")
