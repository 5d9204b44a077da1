"""vhostctl check: how a back-end is named, what is printed, and the status."""

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.conformance.backends import fake
from tests.ctl.programs import script
from tests.programs import executable, listening
from vhostd.conformance.groups import GROUPS
from vhostd.ctl import main

RNG = executable("vhost-user-rng")
COMMAND = f"{RNG} --socket-path={{socket}}"


def run(capfd: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, list[str], str]:
    """The status, the lines printed, and what is on stderr."""
    status = main(["check", *map(str, arguments)])
    printed, error = capfd.readouterr()
    return status, printed.splitlines(), error.strip()


def document(capfd: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, Any]:
    _, lines, error = run(capfd, "--json", *arguments)
    assert not error
    found: dict[str, Any] = json.loads("\n".join(lines))
    return found


def described(path: Path, **members: str) -> Path:
    path.write_text(json.dumps({"description": "a back-end", "tags": [], **members}))
    return path


def test_all_checks_are_listed(capfd: pytest.CaptureFixture[str]) -> None:
    status, lines, _ = run(capfd, "--list")
    assert status == 0
    assert len(lines) == sum(len(group.checks) for group in GROUPS)
    assert lines[0].startswith("CONV-1   should  It prints a JSON object, and ends with success. (--")
    chosen = run(capfd, "--list", "--only", "msg-3", "--only", "NEG-1")[1]
    assert [line.split()[0] for line in chosen] == ["NEG-1", "MSG-3"]
    kinds = {line.split("-")[0] for line in run(capfd, "--list", "--type", "rng")[1]}
    assert {"RNG", "NEG"} <= kinds
    assert not {"BLK", "GPU"} & kinds


def test_a_table_for_a_person(capfd: pytest.CaptureFixture[str]) -> None:
    status, lines, error = run(capfd, "--exec", COMMAND, "--only", "NEG-2", "--only", "CONF-1")
    assert (status, error) == (0, "")
    assert lines[:3] == [
        "NEG-2    should  ok       A device offers VIRTIO_F_VERSION_1.",
        "CONF-1   must    skipped  The reply's payload is as long as the request's.",
        "                          it does not offer CONFIG",
    ]
    assert lines[3] == ""
    assert lines[4].startswith("1 passed, 0 failed, 1 skipped, in ")


def test_the_type_is_asked_for(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    wrapper = script(tmp_path / "wrapper", f'exec {RNG} "$@"')
    command = f"env {wrapper} --socket-path={{socket}}"
    status, lines, _ = run(capfd, "--exec", command, "--only", "RNG-1")
    assert (status, lines[-2]) == (
        0,
        "The type of its device is not known, so no request of one was tried: give it by --type.",
    )
    status, lines, error = run(capfd, "--exec", command, "--type", "lamp")
    assert (status, lines) == (2, [])
    assert error.startswith("vhostctl: error: --type: there is no type 'lamp'; it is one of 9p, ")


@pytest.mark.parametrize("way", ["exec", "type", "description", "socket"])
def test_each_way_to_name_a_back_end(way: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    description = described(tmp_path / "50-rng.json", type="rng", binary=RNG)
    wrapper = script(tmp_path / "wrapper", f'exec {RNG} "$@"')
    path = tmp_path / "socket"
    ways = {
        "exec": ["--exec", COMMAND],
        "type": ["--exec", f"env {wrapper} --socket-path={{socket}}", "--type", "rng"],
        "description": ["--description", str(description)],
        "socket": ["--socket", str(path), "--type", "rng"],
    }
    with listening([RNG], path):
        found = document(capfd, "--only", "RNG-1", *ways[way])
    assert found["type"] == "rng"
    assert found["conforming"]
    assert [check["outcome"] for check in found["checks"]] == ["passed"]


def test_a_type_that_nobody_says_is_not_known(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = document(capfd, "--exec", f"env {COMMAND}", "--only", "RNG-1")
    assert found["type"] == ""
    assert found["checks"][0]["reason"] == "this is for a device of type rng; say which this is: --type"


def test_a_broken_must_is_a_status(capfd: pytest.CaptureFixture[str]) -> None:
    status, lines, error = run(capfd, "--exec", fake("ending"), "--only", "NEG-11", "--only", "NEG-12")
    assert (status, error) == (1, "")
    assert lines[0] == "NEG-11   must    FAILED   A front-end may claim ownership."
    assert lines[1].strip() == "the program ended with status 1: it cannot go on"
    assert "2 failed (1 must, 1 should)" in lines[-1]
    assert run(capfd, "--exec", fake("ending"), "--only", "NEG-12")[0] == 0
    assert not document(capfd, "--exec", fake("ending"), "--only", "NEG-11")["conforming"]


def test_a_tap_stream(capfd: pytest.CaptureFixture[str]) -> None:
    status, lines, _ = run(capfd, "--tap", "--exec", fake("ending"), "--only", "NEG-11", "--only", "NEG-2")
    assert status == 1
    assert lines[:3] == ["TAP version 13", "1..2", "ok 1 - NEG-2 A device offers VIRTIO_F_VERSION_1."]
    assert lines[3] == "not ok 2 - NEG-11 A front-end may claim ownership."


def test_junits_xml(capfd: pytest.CaptureFixture[str]) -> None:
    status, lines, _ = run(capfd, "--junit", "--exec", COMMAND, "--only", "NEG-2")
    assert status == 0
    suite = ElementTree.fromstring("\n".join(lines).encode())
    assert (suite.get("name"), suite.get("tests"), suite.get("failures")) == (RNG, "1", "0")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ([], "say which back-end: --exec CMD, --socket PATH or --description FILE"),
        (["--only", "NEG-1", "--only", "x-1"], "--only: there is no check or group x-1; --list prints them"),
        (["--exec", "rng"], "rng: a command needs {socket} in place of its socket's path, or {fd}"),
        (["--exec", ""], "--exec: the command is empty"),
        (["--list", "--json"], "--json goes with no other format, and not with --list"),
        (["--exec", "rng '"], "--exec: No closing quotation"),
        (
            ["--exec", "rng {socket}", "--type", "rng", "--only", "BLK"],
            "--only: none of these is a check of a device of type rng",
        ),
    ],
)
def test_what_makes_no_sense(arguments: list[str], error: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(capfd, *arguments) == (2, [], f"vhostctl: error: {error}")


@pytest.mark.parametrize(
    "arguments",
    [["--exec", COMMAND, "--socket", "x"], ["--tap", "--json"], ["--patience", "soon"], ["--what"]],
)
def test_options_that_make_no_sense(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    status, printed, error = run(capfd, *arguments)
    assert (status, printed, error.count("\n")) == (2, [], 0)


def test_what_cannot_be_checked(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    nameless = described(tmp_path / "nameless.json", type="rng")
    for arguments, error in (
        (
            ["--socket", tmp_path / "none"],
            f"{tmp_path}/none serves no front-end: No such file or directory",
        ),
        (["--description", tmp_path / "none"], f"{tmp_path}/none: No such file or directory"),
        (["--description", nameless], f"{nameless}: it names no binary; see vhostctl validate"),
        (["--exec", "/none {socket}"], "/none: No such file or directory"),
        (["--exec", "true {socket}"], "it serves no front-end: true has ended with status 0"),
    ):
        assert run(capfd, *arguments) == (1, [], f"vhostctl: error: {error}")


def test_only_commands_that_need_an_event_loop_load_it() -> None:
    code = "import sys; from vhostd.ctl import make_parser; make_parser(); print('asyncio' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_word_with_a_space_is_one_word(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a b").mkdir()
    program = script(tmp_path / "a b" / "rng", f'exec {RNG} "$@"')
    command = f"{shlex.quote(str(program))} --socket-path={{socket}}"
    found = document(capfd, "--exec", command, "--only", "RNG-1")
    assert (found["backend"], found["type"]) == (str(program), "rng")
