"""Paths below another root."""

import errno
from pathlib import Path

import pytest

from vhostd.ctl.libvirt.image import TOP, real


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "usr/bin").mkdir(parents=True)
    (tmp_path / "usr/bin/a").touch()
    (tmp_path / "bin").symlink_to("usr/bin")
    (tmp_path / "sbin").symlink_to("/bin")
    (tmp_path / "usr/bin/up").symlink_to("../../../../../bin/a")
    (tmp_path / "usr/bin/b").symlink_to("/sbin/up")
    (tmp_path / "loop").symlink_to("/loop/x")
    return tmp_path


@pytest.mark.parametrize(
    "path", ["/usr/bin/a", "/bin/a", "/sbin/a", "/bin/up", "/sbin/b", "/../usr/./bin/../bin/a"]
)
def test_links_stay_below_it(root: Path, path: str) -> None:
    assert real(root, Path(path)) == root / "usr/bin/a"


def test_what_is_not_there_is_below_it_all_the_same(root: Path) -> None:
    assert real(root, Path("/bin/none/of/these")) == root / "usr/bin/none/of/these"


def test_a_loop_is_an_error(root: Path) -> None:
    with pytest.raises(OSError, match="symbolic links") as refused:
        real(root, Path("/loop/x"))
    assert refused.value.errno == errno.ELOOP


def test_the_machine_s_own_root(root: Path) -> None:
    assert real(TOP, root / "bin/a") == (root / "bin/a").resolve()
    assert real(TOP, TOP) == TOP
