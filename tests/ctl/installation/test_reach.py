"""What keeps others from starting a program."""

import os
import pwd
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from vhostd.ctl.installation import reach
from vhostd.ctl.installation.reach import (
    Account,
    hidden_folder,
    interpreter,
    is_confined_out,
    launcher,
    obstacle,
)

SOMEBODY = Account("somebody", 54321, frozenset({54322}))


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that everybody may enter, unlike pytest's own, with a package in it."""
    made = Path(tempfile.mkdtemp(prefix="vhostd-", dir="/var/tmp"))
    made.chmod(0o755)
    (made / "vhostd.py").touch(mode=0o644)
    monkeypatch.setattr(reach, "vhostd", SimpleNamespace(__file__=str(made / "vhostd.py")))
    yield made
    shutil.rmtree(made)


def script(path: Path, first: str = "#!/bin/sh") -> Path:
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    path.write_text(f"{first}\n")
    path.chmod(0o755)
    return path


def test_nothing_is_in_the_way(folder: Path) -> None:
    assert obstacle(script(folder / "bin/program"), SOMEBODY) is None


@pytest.mark.parametrize(("mode", "closed"), [(0o700, True), (0o744, True), (0o711, False)])
def test_a_folder(folder: Path, mode: int, *, closed: bool) -> None:
    program = script(folder / "home/venv/bin/program")
    (folder / "home").chmod(mode)
    assert obstacle(program, SOMEBODY) == (folder / "home" if closed else None)
    assert obstacle(program, Account("root", 0, frozenset())) is None


@pytest.mark.parametrize("mode", [0o700, 0o711, 0o744])
def test_the_program_itself(folder: Path, mode: int) -> None:
    program = script(folder / "program")
    program.chmod(mode)
    assert obstacle(program, SOMEBODY) == program


def test_its_interpreter_behind_links(folder: Path) -> None:
    """As a virtual environment has it, whose Python is in a closed home."""
    python = script(folder / "home/python")
    (folder / "venv/bin").mkdir(parents=True)
    (folder / "venv/bin/python3").symlink_to(python)
    (folder / "venv/bin/python").symlink_to("python3")
    program = script(folder / "venv/bin/program", f"#!{folder}/venv/bin/python")
    assert obstacle(program, SOMEBODY) is None
    (folder / "home").chmod(0o700)
    assert obstacle(program, SOMEBODY) == folder / "home"


def test_the_package(folder: Path) -> None:
    program = script(folder / "program")
    (folder / "vhostd.py").chmod(0o600)
    assert obstacle(program, SOMEBODY) == folder / "vhostd.py"


def test_what_is_not_there(folder: Path) -> None:
    assert obstacle(folder / "program", SOMEBODY) == folder / "program"
    program = script(folder / "program", "#!/nonexistent/python")
    assert obstacle(program, SOMEBODY) == Path("/nonexistent/python")


def test_links_in_a_circle(folder: Path) -> None:
    (folder / "a").symlink_to("b")
    (folder / "b").symlink_to("a")
    assert obstacle(folder / "a", SOMEBODY) == folder / "a"


def test_owner_group_and_others(folder: Path) -> None:
    program = script(folder / "home/program")
    home = folder / "home"
    for uid, gid, mode, closed in (
        (54321, 0, 0o700, False),
        (54321, 0, 0o077, True),
        (0, 54322, 0o050, False),
        (0, 54322, 0o707, True),
        (0, 0, 0o705, False),
    ):
        os.chown(home, uid, gid)
        home.chmod(mode)
        assert (obstacle(program, SOMEBODY) == home) is closed, oct(mode)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("#!/usr/bin/python3", "/usr/bin/python3"),
        ("#! /usr/bin/env python3", "/usr/bin/env"),
        ("#!/bin/sh\n'''exec' \"/a b/bin/python\" \"$0\" \"$@\"\n' '''", "/a b/bin/python"),
        ("#!/bin/sh\n'''exec' /long/bin/python \"$0\" \"$@\"\n' '''", "/long/bin/python"),
        ("#!", None),
        ("\x7fELF", None),
        ("", None),
    ],
)
def test_the_interpreter_of_a_script(tmp_path: Path, lines: str, expected: str | None) -> None:
    program = script(tmp_path / "program", lines)
    assert interpreter(program) == (Path(expected) if expected else program)


def test_no_interpreter_of_what_is_not_there(tmp_path: Path) -> None:
    assert interpreter(tmp_path / "program") == tmp_path / "program"


def test_the_user_of_libvirt(monkeypatch: pytest.MonkeyPatch) -> None:
    root = pwd.getpwuid(0)
    known = {"qemu": SimpleNamespace(pw_uid=107, pw_gid=root.pw_gid)}
    monkeypatch.setattr(pwd, "getpwnam", known.__getitem__)
    monkeypatch.setattr(os, "getgrouplist", lambda name, gid: [gid, 36])
    assert launcher() == Account("qemu", 107, frozenset({root.pw_gid, 36}))
    known.clear()
    nobody = launcher()
    assert (nobody.name, nobody.groups) == ("libvirt-qemu", frozenset())
    assert nobody.uid not in {entry.pw_uid for entry in pwd.getpwall()}


@pytest.mark.parametrize(
    ("program", "stopped"),
    [
        ("/usr/bin/vhost-user-gpu", False),
        ("/usr/sbin/vhost-user-gpu", False),
        ("/usr/lib/qemu/vhost-user-gpu", False),
        ("/usr/libexec/vhost-user-gpu", False),
        ("/usr/libexec/vhost-user-rng", True),
        ("/usr/libexec/vhostd/vhost-user-gpu", True),
        ("/usr/local/bin/vhost-user-gpu", True),
        ("/opt/vhostd/bin/vhost-user-gpu", True),
    ],
)
def test_what_apparmor_s_profile_allows(program: str, *, stopped: bool) -> None:
    assert is_confined_out(Path(program)) is stopped


def test_apparmor_looks_behind_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach, "CONFINED_FOLDERS", (tmp_path / "bin",))
    script(tmp_path / "opt/program")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/program").symlink_to(tmp_path / "opt/program")
    assert is_confined_out(tmp_path / "bin/program")
    assert not is_confined_out(script(tmp_path / "bin/another"))


@pytest.mark.parametrize(("content", "on"), [("Y\n", True), ("N\n", False), (None, False)])
def test_apparmor_is_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, *, on: bool
) -> None:
    monkeypatch.setattr(reach, "CONFINEMENT", tmp_path / "enabled")
    if content:
        (tmp_path / "enabled").write_text(content)
    assert reach.confinement_is_on() is on


def test_what_services_do_not_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach, "HIDDEN_FROM_SERVICES", (tmp_path / "home",))
    assert hidden_folder(script(tmp_path / "opt/program")) is None
    assert hidden_folder(script(tmp_path / "home/program")) == tmp_path / "home"
    assert hidden_folder(script(tmp_path / "opt/program", f"#!{tmp_path}/home/python")) == tmp_path / "home"
