"""The files of findings, without a back-end."""

from pathlib import Path

import pytest

from vhostd.errors import SetupError
from vhostd.fuzz.findings import Findings, Found
from vhostd.fuzz.operation import Case, Connect, Kick
from vhostd.fuzz.verdict import Finding


def found(case: Case, kind: str = "hang") -> Found:
    return Found(1, Finding(kind, "it hangs"), case, done_again=True, usual_end=None)


def test_what_looks_like_one_that_was_has_no_files(tmp_path: Path) -> None:
    findings = Findings(tmp_path / "new", "x {socket}")
    connect = Connect(rings=1, size=64, packed=False)
    first = findings.add(found((connect, Kick(ring=0))))
    assert first is not None
    assert findings.add(found((connect, Kick(ring=1)))) is None
    assert {*(tmp_path / "new").iterdir()} == {first.case, first.script}
    assert findings.add(found((connect, Kick(ring=1)), "fds")) is not None
    assert len(findings.written) == 2


def test_a_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(SetupError, match=str(folder)):
            Findings(folder, "x {socket}")
