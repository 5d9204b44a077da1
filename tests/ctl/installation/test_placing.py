"""Files are written all or none, each in one step."""

import errno
import os
import signal
from pathlib import Path

import pytest

from tests.ctl.staging import tree
from vhostd.ctl.installation.placing import missing_folders, place, remove_folders


def test_missing_folders_are_made_from_the_outside(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    files = [tmp_path / "a/b/c/file", tmp_path / "a/file", tmp_path / "d/file"]
    expected = [tmp_path / "a/b", tmp_path / "a/b/c", tmp_path / "d"]
    assert missing_folders(files) == expected


def test_whoever_reads_meanwhile_sees_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    place({path: b"old"})
    with path.open("rb") as reader:
        place({path: b"new"})
        assert reader.read() == b"old"
    assert tree(tmp_path) == {"file": b"new"}


def test_nothing_else_is_left(tmp_path: Path) -> None:
    (tmp_path / "kept").write_bytes(b"old")
    (tmp_path / "folder").mkdir()
    before = tree(tmp_path)
    # The last is a folder, which no file can replace.
    files = {tmp_path / "kept": b"new", tmp_path / "a/b": b"new", tmp_path / "folder": b"new"}
    with pytest.raises(IsADirectoryError):
        place(files)
    assert tree(tmp_path) == before


def test_what_is_obsolete_goes(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"old")
    place({tmp_path / "new": b"new"}, [tmp_path / "old"])
    assert tree(tmp_path) == {"new": b"new"}


def test_what_is_obsolete_comes_back(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"old")
    (tmp_path / "folder").mkdir()
    before = tree(tmp_path)
    with pytest.raises(IsADirectoryError):
        place({tmp_path / "new": b"new"}, [tmp_path / "old", tmp_path / "folder"])
    assert tree(tmp_path) == before


def test_a_fault_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write to a full disk has no name, and that of a temporary file says nothing to anybody."""

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        place({tmp_path / "file": b"new"})
    assert caught.value.filename == str(tmp_path / "file")
    assert tree(tmp_path) == {}


def test_another_has_made_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mkdir = Path.mkdir

    def late(path: Path, mode: int = 0o777, *, exist_ok: bool = False) -> None:
        mkdir(path)
        mkdir(path, mode, exist_ok=exist_ok)

    monkeypatch.setattr(Path, "mkdir", late)
    place({tmp_path / "a/b/file": b""})
    assert tree(tmp_path) == {"a": None, "a/b": None, "a/b/file": b""}


def test_an_interrupt_is_a_failure_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = os.replace

    def interrupted(source: str, target: Path) -> None:
        replace(source, target)
        if target.name == "b":
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        place({tmp_path / "x/a": b"", tmp_path / "x/b": b"", tmp_path / "x/c": b""})
    assert tree(tmp_path) == {}


def test_signals_wait_until_all_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = os.replace

    def interrupted(source: str, target: Path) -> None:
        signal.raise_signal(signal.SIGINT)
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        place({tmp_path / "x/a": b"a", tmp_path / "x/b": b"b"})
    assert tree(tmp_path) == {"x": None, "x/a": b"a", "x/b": b"b"}


def test_only_empty_folders_are_removed(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/file").touch()
    remove_folders([tmp_path / "a", tmp_path / "a/b", tmp_path / "gone"])
    assert tree(tmp_path) == {"a": None, "a/file": b""}
