"""A folder of cases."""

from pathlib import Path

import pytest

from vhostd.errors import SetupError
from vhostd.fuzz.corpus import Corpus, load, save
from vhostd.fuzz.operation import Await, Case, Connect

CASE: Case = (Connect(rings=1, size=64, packed=False), Await())


def test_a_case_is_there_for_the_next_run(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    Corpus(folder).add(CASE)
    assert Corpus(folder).cases == [CASE]


def test_the_same_case_has_one_file(tmp_path: Path) -> None:
    assert save(CASE, tmp_path, "case") == save(CASE, tmp_path, "case")
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_that_is_no_case_is_named(tmp_path: Path) -> None:
    (tmp_path / "case-x.json").write_text("[1]")
    with pytest.raises(SetupError, match=r"case-x\.json is no case: 0: "):
        Corpus(tmp_path)
    (tmp_path / "case-x.json").write_text('[{"op": "kick"}]')
    with pytest.raises(SetupError, match=r"case-x\.json is no case: 0\.kick\.ring: Field required$"):
        Corpus(tmp_path)
    with pytest.raises(SetupError, match=r"nowhere\.json: No such file"):
        load(tmp_path / "nowhere.json")


def test_a_line_is_new_once_whatever_its_numbers_are() -> None:
    corpus = Corpus(None)
    assert corpus.is_new({("reply", 1)}, [])
    assert not corpus.is_new({("reply", 1)}, [])
    assert corpus.is_new((), ["vring 3 is broken: 0x1000"])
    assert not corpus.is_new((), ["vring 4 is broken: 0xffff"])
    assert corpus.is_new((), ["vring 4 stopped"])
