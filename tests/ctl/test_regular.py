"""Only what cannot keep a reader waiting is opened."""

import os
import stat
from pathlib import Path

import pytest

from vhostd.ctl.regular import open_regular


def test_a_file_and_a_link_to_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link"):
        with open_regular(tmp_path / name) as file:
            assert file.read() == b"content"


def test_other_kinds(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    os.mknod(tmp_path / "socket", stat.S_IFSOCK | 0o644)
    for path, message in {
        tmp_path: "Is a directory",
        tmp_path / "fifo": "it is no regular file",
        tmp_path / "socket": "No such device or address",
        Path("/dev/zero"): "it is no regular file",
    }.items():
        with pytest.raises(OSError, match=message) as refused:
            open_regular(path)
        assert refused.value.filename in (path, str(path))
