"""vhostctl probe: what programs say, and what is made of it."""

import json
import os
import select
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.ctl.programs import answering, script
from tests.programs import PATIENCE, PROGRAMS, environment, executable
from vhostd.ctl import main, probe
from vhostd.ctl.libvirt import answer


@pytest.fixture(autouse=True)
def _no_render_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "has_render_node", lambda: False)


def run(capfd: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, list[str], str]:
    """The status, the lines printed, and the line on stderr."""
    status = main(["probe", *map(str, arguments)])
    printed, error = capfd.readouterr()
    assert error.count("\n") == status
    return status, printed.splitlines(), error.strip()


def report(capfd: pytest.CaptureFixture[str], *arguments: str | Path) -> list[Any]:
    lines = run(capfd, "--json", *arguments)[1]
    found: list[Any] = json.loads("\n".join(lines))["programs"]
    return found


@pytest.mark.parametrize("program", PROGRAMS)
def test_our_programs_are_well(program: str, capfd: pytest.CaptureFixture[str]) -> None:
    status, printed, _ = run(capfd, executable(program))
    assert status == 0
    assert printed[0].startswith(f"{executable(program)}: {PROGRAMS[program]}, ")
    assert printed[0].endswith(" ms")
    used = PROGRAMS[program] == "gpu"
    assert printed[1:] == ["  libvirt: used" if used else "  libvirt: it starts no programs of this type"]


def test_what_is_wrong_is_told_of_each(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    good = answering(tmp_path / "good", '{"type": "gpu", "features": ["virgl"]}')
    body = """echo '{"type": "gpu", "features": ["3d"]}'; echo 'no GL' >&2; exit 1"""
    bad = script(tmp_path / "bad", body)
    status, printed, error = run(capfd, good, bad)
    assert status == 1
    assert error == f"vhostctl: error: not as it should be: {bad}"
    assert printed[0].startswith(f"{good}: gpu, features: virgl, ")
    assert printed[1] == "  libvirt: used"
    assert printed[2].startswith(f"{bad}: gpu, features: 3d, ")
    assert printed[3:] == [
        "  libvirt: skipped: it exits with status 1",
        "  fault: it exits with status 1",
        '  fault: what it prints, at $.features[0]: "3d" is none of render-node, virgl',
        "  stderr: no GL",
    ]


def test_a_program_that_does_not_tell_what_it_is(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (found,) = report(capfd, script(tmp_path / "it", "echo hello"))
    assert (found["type"], found["state"], found["features"]) == (None, "skipped", [])
    assert found["reason"] == "it does not tell its type"
    assert found["faults"] == ["what it prints is not JSON: line 1, column 1: expecting value"]


def test_what_its_description_says_counts_for_libvirt(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (found,) = report(capfd, "--type=gpu", answering(tmp_path / "it", '{"type": "net"}'))
    assert (found["type"], found["state"]) == ("gpu", "skipped")
    assert found["reason"] == "what it prints has no list of features"
    assert found["faults"] == ['it calls itself a program of type "net"']


def test_a_render_node_that_the_host_lacks(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (found,) = report(capfd, answering(tmp_path / "it", '{"type": "gpu", "features": ["render-node"]}'))
    assert (found["state"], found["faults"]) == ("fails", [])


def test_a_program_that_hangs(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "ask", lambda binary: answer.ask(binary, patience=0.2))
    status, printed, _ = run(capfd, "--type=gpu", script(tmp_path / "it", "exec sleep 600"))
    assert status == 1
    assert printed[1:] == [
        "  libvirt: fails: it has not ended within 0.2 s, and libvirt sets no limits: it may wait for ever",
        "  fault: it has not ended within 0.2 s",
    ]


def test_a_program_is_named_as_in_a_shell(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(tmp_path / "it", '{"type": "net"}')
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)
    assert run(capfd, "./it", "it")[0] == 0
    missing = report(capfd, "vhost-user-nowhere", "./nowhere")
    assert [[each["reason"]] for each in missing] == [each["faults"] for each in missing]
    assert [each["faults"] for each in missing] == [
        ["there is no program 'vhost-user-nowhere'"],
        [f"{tmp_path}/nowhere cannot be started: No such file or directory"],
    ]


def test_what_it_prints_cannot_garble_a_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    features = '{"type": "\\u001b[2J", "features": ["\\u001b[31m", "\\ud800", 5]}'
    path = script(tmp_path / "it", f"cat <<'END'\n{features}\nEND\nprintf '\\033[31m\\377\\nx\\n' >&2")
    for options in ([], ["--json"]):
        status, printed, error = run(capfd, *options, path)
        assert status == 1
        assert all(line.isprintable() for line in [*printed, error])
    (found,) = report(capfd, path)
    assert found["features"] == ["\\x1b[31m", "\\ud800"]
    assert found["errors"] == ["\\x1b[31m\ufffd", "x"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_who_interrupts_it_ends_what_was_asked(tmp_path: Path, number: int) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    path = script(tmp_path / "it", f"exec 9> {fifo}\necho asked >&9\nexec sleep 600")
    # Whoever runs the tests, such as nohup, may have had it ignored.
    command = ["env", "--default-signal", executable("vhostctl"), "probe", str(path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    ) as process:
        with fifo.open("rb") as reader:
            assert reader.readline() == b"asked\n"
            process.send_signal(number)
            assert select.select([reader], [], [], PATIENCE)[0], "the program still runs"
        assert process.communicate(timeout=PATIENCE) == (b"", b"")
    assert process.returncode == 128 + number


@pytest.mark.parametrize("arguments", [[], ["--type=sound", "x"], ["--timeout=1", "x"]])
def test_a_command_line_that_makes_no_sense(arguments: list[str]) -> None:
    done = subprocess.run(
        [executable("vhostctl"), "probe", *arguments], capture_output=True, env=environment(), timeout=60
    )
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"vhostctl: error: ")
    assert done.stderr.count(b"\n") == 1
