"""The record of an installation."""

from pathlib import Path

import pytest

from vhostd.ctl.installation.record import Record, digest
from vhostd.errors import SetupError


def test_what_is_written_is_read(tmp_path: Path) -> None:
    record = Record(files={Path("/a"): digest(b"a")}, folders=[Path("/b")])
    path = tmp_path / "record"
    path.write_bytes(record.dump())
    assert Record.load(path) == record


def test_there_is_none(tmp_path: Path) -> None:
    assert Record.load(tmp_path / "record") is None


def test_it_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=f"{tmp_path}: Is a directory"):
        Record.load(tmp_path)


def test_a_digest_is_sha256() -> None:
    assert digest(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_what_counts_as_unchanged(tmp_path: Path) -> None:
    path, link = tmp_path / "file", tmp_path / "link"
    path.write_bytes(b"a")
    link.symlink_to(path)
    record = Record(files=dict.fromkeys((path, link, tmp_path / "gone", tmp_path), digest(b"a")))
    assert record.is_unchanged(path)
    assert not record.is_unchanged(link)
    assert not record.is_unchanged(tmp_path / "gone")
    assert not record.is_unchanged(tmp_path)
    path.write_bytes(b"b")
    assert not record.is_unchanged(path)
    assert not Record().is_unchanged(path)
