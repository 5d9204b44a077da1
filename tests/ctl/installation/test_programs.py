"""Which programs of this project are installed, and what they take."""

import sys
import sysconfig
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from tests.ctl.staging import put_programs
from tests.programs import PROGRAMS
from vhostd.ctl.installation import programs
from vhostd.ctl.installation.programs import installed_programs
from vhostd.errors import SetupError


def test_those_beside_this_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_programs(tmp_path, "vhost-user-gpu", "vhost-user-rng", "vhost-user-foreign")
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "vhostctl")])
    found = {program.name: program for program in installed_programs()}
    assert set(found) == {"vhost-user-gpu", "vhost-user-rng", "vhostctl"}
    assert [found[name].type for name in sorted(found)] == ["gpu", "rng", None]
    assert found["vhost-user-gpu"].path == tmp_path / "vhost-user-gpu"


def test_a_relative_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_programs(tmp_path / "bin", *PROGRAMS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["bin/vhostctl"])
    assert {program.path.parent for program in installed_programs()} == {tmp_path / "bin"}


def test_started_in_another_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `python -m` does; then the programs are where this Python has them."""
    monkeypatch.setattr(sys, "argv", ["/elsewhere/__main__.py"])
    folder = Path(sysconfig.get_path("scripts"))
    assert {program.path.parent for program in installed_programs()} == {folder}


def test_nothing_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(programs, "distribution", none)
    with pytest.raises(SetupError, match="vhostd is not installed"):
        installed_programs()


def test_parsers_are_named_after_their_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_programs(tmp_path, *PROGRAMS)
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "vhostctl")])
    for program in installed_programs():
        assert program.parser.prog == program.name
        assert program.parser.format_usage().startswith(f"usage: {program.name} ")
