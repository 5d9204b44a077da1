import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from vhostd.host.folder import Folder

NOBODY = 65534


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


@pytest.fixture
def folder(place: Path) -> Iterator[Folder]:
    folder = Folder(str(place))
    yield folder
    folder.close()


def test_it_is_what_it_was_whatever_takes_its_place(folder: Folder, place: Path) -> None:
    before = place.stat()
    place.rename(place.with_name("away"))
    place.symlink_to("/etc")
    assert os.path.samestat(os.stat(folder.path), before)
    os.close(folder.make("file"))
    folder.rename("file", "other")
    assert os.listdir(place.with_name("away")) == ["other"]
    folder.remove("other")
    assert os.listdir(place.with_name("away")) == []


def test_no_path_is_the_current_folder(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    folder = Folder("")
    assert os.path.samestat(os.stat(folder.path), place.stat())
    folder.close()


def test_what_is_no_folder_cannot_be_held(place: Path) -> None:
    (place / "file").touch()
    for path in ("file", "none"):
        with pytest.raises(OSError, match=r"No such file|Not a directory"):
            Folder(str(place / path))


def test_a_file_is_made_where_there_is_none(folder: Folder, place: Path) -> None:
    (place / "link").symlink_to(place / "target")
    with pytest.raises(FileExistsError):
        folder.make("link")
    assert not (place / "target").exists()


def test_what_is_pinned_is_told_from_what_takes_its_place(folder: Folder, place: Path) -> None:
    (place / "link").symlink_to("/etc/passwd")
    with folder.pin("link") as pinned:
        assert stat.S_ISLNK(os.fstat(pinned.fileno()).st_mode)
        assert folder.has("link", pinned)
        (place / "link").unlink()
        assert not folder.has("link", pinned)
        (place / "link").touch()
        assert not folder.has("link", pinned)


@pytest.mark.parametrize(
    ("mode", "owner", "is_open"),
    [
        (0o755, 0, False),
        (0o775, 0, True),
        (0o757, 0, True),
        (0o1777, 0, False),
        (0o700, NOBODY, True),
        (0o1777, NOBODY, True),
    ],
)
def test_who_may_put_a_file_in_another_s_place(
    folder: Folder, place: Path, *, mode: int, owner: int, is_open: bool
) -> None:
    os.chown(place, owner, -1)
    place.chmod(mode)
    assert folder.is_open_to_others == is_open
    assert folder.is_sticky == bool(mode & stat.S_ISVTX)
