"""Our model of libvirt's discovery says of every case what libvirt does."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ctl import matrix
from tests.ctl.matrix import Case, Verdict
from vhostd.ctl.libvirt.answer import ask
from vhostd.ctl.libvirt.discovery import State, discover, is_broken
from vhostd.ctl.libvirt.folders import read_folder
from vhostd.ctl.libvirt.json_text import JSON_C, TOLERANT, Dialect
from vhostd.ctl.libvirt.judgement import choose, judge

# What parsers may differ about.
READ = [case for case in matrix.CASES if case in matrix.DESCRIPTIONS or case.refused_by]


@pytest.mark.parametrize("case", matrix.CASES, ids=str)
def test_the_model_decides_as_libvirt(case: Case, tmp_path: Path) -> None:
    matrix.write(case, tmp_path)
    assert verdict(tmp_path, TOLERANT) == case.verdict
    for dialect in JSON_C.values() if case in READ else ():
        assert verdict(tmp_path, dialect) == case.verdict_by(dialect.name), dialect.name


def test_cases_have_names_of_their_own() -> None:
    assert len({case.name for case in matrix.CASES}) == len(matrix.CASES)


def test_all_that_a_case_has_made_is_removed(tmp_path: Path) -> None:
    for case in matrix.CASES:
        matrix.write(case, tmp_path)
        matrix.remove(tmp_path)
        assert not list(files(tmp_path))


def verdict(root: Path, dialect: Dialect) -> Verdict:
    """What the model says of the folders below `root`."""
    entries = discover([read_folder(root / folder) for folder in (matrix.SHARE, matrix.ETC)], dialect)
    if is_broken(entries):
        return Verdict.FATAL
    judgements = {
        entry: judge(entry.type, ask(entry.binary), render_node=False, dialect=dialect)
        for entry in entries
        if entry.state == State.CANDIDATE and entry.type == "gpu"
    }
    chosen, judgement = next(
        (entry, each) for entry, each in choose(judgements).items() if each.state in (State.USED, State.FAILS)
    )
    if judgement.state == State.FAILS:
        return Verdict.FATAL
    return Verdict.NEXT if chosen.path.name == matrix.OK else Verdict.USED


def files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())
