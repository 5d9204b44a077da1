"""What keeps libvirt from starting a program that it has chosen."""

from pathlib import Path

import pytest

from tests.ctl.programs import script
from vhostd.ctl.installation import reach
from vhostd.ctl.installation.reach import Account
from vhostd.ctl.libvirt.discovery import Entry, State
from vhostd.ctl.libvirt.hazards import hazards

SOMEBODY = Account("libvirt-qemu", 64055, frozenset({64055}))


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that everybody can run, on a machine with libvirt's user and without AppArmor."""
    monkeypatch.setattr(reach, "launcher", lambda: SOMEBODY)
    monkeypatch.setattr(reach, "confinement_is_on", lambda: False)
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)
    (tmp_path / "bin").mkdir(mode=0o755)
    return script(tmp_path / "bin/vhost-user-gpu", ":")


def found(binary: str | Path | None, kind: str = "gpu") -> list[str]:
    name = None if binary is None else str(binary)
    return list(hazards(Entry(Path("/etc/50-a.json"), State.CANDIDATE, type=kind, binary=name)))


def unreachable(path: Path, closed: Path) -> str:
    return f"libvirt-qemu, as whom libvirt starts it, cannot reach {path}: {closed} is closed to it"


def test_there_is_nothing_to_say_of_most(program: Path) -> None:
    assert found(program) == []
    assert found(None) == []
    assert found("vhost-user-nowhere") == []


def test_a_folder_that_qemu_s_user_cannot_enter(program: Path) -> None:
    program.parent.chmod(0o700)
    assert found(program) == [unreachable(program, program.parent)]
    assert found(program, "fs") == [], "a virtiofsd runs as root"


def test_a_program_that_only_root_may_run(program: Path) -> None:
    program.chmod(0o700)
    assert found(program) == [unreachable(program, program)]


def test_an_interpreter_that_only_root_may_run(program: Path) -> None:
    interpreter = script(program.with_name("interpreter"), ":")
    program.write_text(f"#!{interpreter}\n")
    assert found(program) == []
    interpreter.chmod(0o700)
    assert found(program) == [unreachable(interpreter, interpreter)]


def test_apparmor_lets_few_be_started(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach, "confinement_is_on", lambda: True)
    assert found(program) == [
        f"AppArmor's profile of libvirtd does not let it start {program}: have it in /usr/bin"
    ]
    assert found("/usr/bin/env") == []
