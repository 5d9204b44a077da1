"""vhostctl uninstall: exactly what was installed goes."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.ctl.staging import Site, files, put_programs, tree
from tests.programs import PATIENCE, PROGRAMS, environment, executable
from vhostd.ctl.installation.record import Record, digest

RECORD = "share/vhostd/installed.json"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Site:
    return Site(tmp_path, monkeypatch, capfd)


def test_nothing_is_left(site: Site, tmp_path: Path) -> None:
    before = tree(tmp_path)
    _, installed, _ = site.run("install", f"--prefix={site.prefix}")
    status, removed, complaints = site.run("uninstall", f"--prefix={site.prefix}")
    assert (status, complaints) == (0, [])
    assert sorted(removed) == sorted(installed)
    assert tree(tmp_path) == before


def test_nothing_is_left_of_a_user_s(site: Site, tmp_path: Path) -> None:
    before = tree(tmp_path)
    site.run("install", "--user")
    assert site.run("uninstall", "--user")[0] == 0
    assert tree(tmp_path) == before


def test_nothing_is_left_of_several_installations(site: Site, tmp_path: Path) -> None:
    before = tree(tmp_path)
    site.install("--types", "gpu")
    site.install("--types", "rng")
    assert site.run("uninstall", f"--prefix={site.prefix}")[0] == 0
    assert tree(tmp_path) == before


def test_nothing_is_left_in_a_tree(site: Site, tmp_path: Path) -> None:
    staged = tmp_path / "staged"
    site.called_from(put_programs(staged / "usr/bin", *PROGRAMS))
    before = tree(tmp_path)
    where = ("--prefix=/usr", f"--destdir={staged}")
    assert site.run("install", *where)[0] == 0
    assert tree(tmp_path) != before
    assert site.run("uninstall", *where)[0] == 0
    assert tree(tmp_path) == before


def test_it_needs_no_program(site: Site) -> None:
    site.install()
    for name in PROGRAMS:
        (site.programs / name).unlink()
    assert site.run("uninstall", f"--prefix={site.prefix}")[0] == 0
    assert not site.prefix.exists()


def test_what_was_changed_is_kept_and_named(site: Site) -> None:
    site.install()
    changed = site.prefix / "share/man/man1/vhostctl.1"
    linked = site.prefix / "share/qemu/vhost-user/50-vhostd-gpu.json"
    changed.write_text("changed")
    linked.unlink()
    linked.symlink_to("/dev/null")
    status, removed, complaints = site.run("uninstall", f"--prefix={site.prefix}")
    assert status == 0
    assert sorted(complaints) == [
        f"vhostctl: warning: {path} was changed since it was installed, and is kept"
        for path in sorted((changed, linked))
    ]
    assert not {str(changed), str(linked)} & set(removed)
    assert {path for path in site.prefix.rglob("*") if not path.is_dir()} == {changed, linked}


def test_what_is_removed_is_told_if_the_rest_is_not(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    _, installed, _ = site.run("install", f"--prefix={site.prefix}")
    unlink = Path.unlink

    def fail(path: Path, *, missing_ok: bool = False) -> None:
        if path.name == "vhostctl.1":
            raise PermissionError(13, "Permission denied", str(path))
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", fail)
    status, removed, complaints = site.run("uninstall", f"--prefix={site.prefix}")
    assert status == 1
    assert complaints == [f"vhostctl: error: {site.prefix}/share/man/man1/vhostctl.1: Permission denied"]
    assert removed
    assert {path for path in installed if not Path(path).exists()} == set(removed)


def test_what_is_gone_already_is_no_fault(site: Site) -> None:
    site.install()
    shutil.rmtree(site.prefix / "share/man")
    status, _, complaints = site.run("uninstall", f"--prefix={site.prefix}")
    assert (status, complaints) == (0, [])
    assert not site.prefix.exists()


def test_what_belongs_to_others_stays(site: Site) -> None:
    site.install()
    own = site.prefix / "share/man/man1/another.1"
    own.touch()
    empty = site.prefix / "lib/systemd/system/another.d"
    empty.mkdir()
    assert site.run("uninstall", f"--prefix={site.prefix}")[0] == 0
    assert files(site.prefix) == {"share/man/man1/another.1"}
    assert empty.is_dir()


def test_folders_that_were_there_stay(site: Site) -> None:
    there = site.prefix / "share/qemu"
    there.mkdir(parents=True)
    site.install()
    assert site.run("uninstall", f"--prefix={site.prefix}")[0] == 0
    assert tree(site.prefix) == {"share": None, "share/qemu": None}


def test_nothing_was_installed(site: Site) -> None:
    status, printed, complaints = site.run("uninstall", f"--prefix={site.prefix}")
    assert (status, printed) == (1, [])
    assert complaints == [f"vhostctl: error: nothing to remove: there is no {site.prefix / RECORD}"]


@pytest.mark.parametrize("way", ["bin/vhostctl", "prefix/share/../../bin/vhostctl"])
def test_a_record_that_names_what_is_elsewhere(site: Site, tmp_path: Path, way: str) -> None:
    site.install()
    before = tree(tmp_path)
    path = site.prefix / RECORD
    record = Record.load(path)
    assert record
    record.files[tmp_path / way] = digest((site.programs / "vhostctl").read_bytes())
    path.write_bytes(record.dump())
    status, printed, complaints = site.run("uninstall", f"--prefix={site.prefix}")
    assert (status, printed) == (1, [])
    assert complaints == [
        f"vhostctl: error: {path} names {tmp_path}/{way}, which is no place of this installation"
    ]
    assert files(tmp_path) == {name for name, content in before.items() if content is not None}


@pytest.mark.parametrize("way", ["empty", "prefix/share/../../empty"])
def test_a_record_that_names_a_folder_elsewhere(site: Site, tmp_path: Path, way: str) -> None:
    site.install()
    (tmp_path / "empty").mkdir()
    before = tree(tmp_path)
    path = site.prefix / RECORD
    record = Record.load(path)
    assert record
    record.folders.append(tmp_path / way)
    path.write_bytes(record.dump())
    status, printed, complaints = site.run("uninstall", f"--prefix={site.prefix}")
    assert (status, printed) == (1, [])
    assert complaints == [
        f"vhostctl: error: {path} names {tmp_path}/{way}, which is no place of this installation"
    ]
    assert tree(tmp_path).keys() == before.keys()


def test_a_fifo_in_place_of_the_record(site: Site) -> None:
    site.install()
    path = site.prefix / RECORD
    path.unlink()
    os.mkfifo(path)
    before = files(site.prefix)
    # In a program of its own, which can be stopped if it waits.
    command = [executable("vhostctl"), "uninstall", f"--prefix={site.prefix}"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=PATIENCE)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"vhostctl: error: {path}: it is no regular file\n"
    assert files(site.prefix) == before


def test_what_a_package_has_put_there_is_the_package_s(site: Site) -> None:
    status, printed, complaints = site.run("uninstall", "--prefix=/usr")
    assert (status, printed) == (2, [])
    assert complaints == ["vhostctl: error: --prefix=/usr is for packages, and goes with --destdir"]


@pytest.mark.parametrize("text", ["", "[]", '{"files": 5}', '{"other": {}}'])
def test_a_record_that_is_none(site: Site, text: str) -> None:
    site.install()
    path = site.prefix / RECORD
    path.write_text(text)
    before = tree(site.prefix)
    status, _, complaints = site.run("uninstall", f"--prefix={site.prefix}")
    assert status == 1
    assert len(complaints) == 1
    assert complaints[0].startswith(f"vhostctl: error: {path} is no record of an installation: ")
    assert tree(site.prefix) == before
