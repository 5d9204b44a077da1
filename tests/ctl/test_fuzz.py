"""vhostctl fuzz: its options, its report and its status."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz.test_campaign import command
from vhostd.ctl import main
from vhostd.fuzz import execution


def run(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any], str]:
    """The status, the report, and what was said meanwhile."""
    status = main(["fuzz", "--json", "--without=resize", *arguments])
    printed, said = capfd.readouterr()
    return status, json.loads(printed or "{}"), said


def test_what_is_found_is_reported_and_can_be_run_again(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    options = ["--seed=7", "--cases=8", "--jobs=2", f"--findings={tmp_path / 'found'}"]
    status, report, said = run(capfd, "--exec", command("exit"), *options)
    assert status == 1
    assert report["seed"] == 7
    assert report["cases"] >= 8
    (finding,) = report["findings"]
    assert finding["operations"] == ["connect", "SET_LOG_FD"]
    assert Path(finding["script"]).parent == tmp_path / "found"
    assert said.count("FOUND in case") == 1
    assert run(capfd, "--exec", command("exit"), "--case", finding["case"])[0] == 1
    assert run(capfd, "--exec", command("none"), "--case", finding["case"])[0] == 0


def test_a_corpus_grows_where_nothing_is_found(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    status, report, _ = run(
        capfd,
        *("--exec", command("none"), "--cases=5", "--messages", "--seed=3"),
        *("--corpus", str(corpus), "--findings", str(tmp_path)),
    )
    assert status == 0
    assert not report["findings"]
    assert report["messages"] > 50
    assert list(corpus.glob("case-*.json"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--exec=true"], "error: --exec: the command needs {socket}"),
        (["--exec=x '{socket}"], "error: --exec: No closing quotation"),
        (["--exec=x {socket}", "--type=lamp"], "error: no requests are known of type lamp"),
        (["--exec=x {socket}", "--without=foo"], "error: --without: no operation is called foo: await,"),
        (["--exec=x {socket}", "--time=soon"], "error: argument --time: soon is no time"),
        (["--exec=x {socket}", "--jobs=0"], "error: argument --jobs: 0 is no number from 1 on"),
    ],
)
def test_what_makes_no_sense_is_refused(
    options: list[str], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["fuzz", *options]) == 2
    assert said in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("/nowhere {socket}", "/nowhere cannot be started: No such file or directory"),
        (f"{sys.executable} -c 'print(1/0)' {{socket}}", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_back_end_that_does_not_start_is_one_line(
    words: str, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["fuzz", "--exec", words]) == 1
    assert said in capfd.readouterr().err.splitlines()[-1]


def test_a_back_end_without_a_socket_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(execution, "SOCKET", 0.2)
    assert main(["fuzz", "--exec", "sh -c 'exec sleep 77' {socket}"]) == 1
    assert "it has made no socket within 0.2 s" in capfd.readouterr().err.splitlines()[-1]


def test_a_folder_that_cannot_be_is_all_that_is_said(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    assert main(["fuzz", "--exec=x {socket}", f"--findings={tmp_path / 'file'}"]) == 1
    assert capfd.readouterr().err == f"vhostctl: error: {tmp_path / 'file'}: File exists\n"
