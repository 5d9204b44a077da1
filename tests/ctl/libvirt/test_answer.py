"""How a program is asked for its capabilities."""

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.ctl.programs import python_script, script
from tests.programs import PATIENCE
from vhostd.ctl.libvirt.answer import OUTPUT_LIMIT, Answer, ask, environment, find

SHORT = 0.3  # seconds


def test_the_program_sees_what_libvirt_shows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOMETHING", "else")
    body = """
        import json, os, signal, sys
        mask = os.umask(0)
        listed = os.listdir("/proc/self/fd")
        numbers = [int(each) for each in listed if os.path.exists(f"/proc/self/fd/{each}")]
        files = {number: os.readlink(f"/proc/self/fd/{number}").partition(":")[0] for number in (0, 1, 2)}
        others = [number for number in numbers if number > 2]
        blocked = len(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        print(json.dumps([sys.argv[1:], os.getcwd(), mask, files, others, blocked, sorted(os.environ)]))
    """
    answer = ask(str(python_script(tmp_path / "it", body)))
    arguments, folder, mask, files, others, blocked, variables = json.loads(answer.output)
    assert arguments == ["--print-capabilities"]
    assert (folder, mask, others, blocked) == ("/", 0o022, [], 0)
    assert files == {"0": "/dev/null", "1": "pipe", "2": "pipe"}
    assert "PATH" in variables
    assert ("SOMETHING" in variables) == (os.geteuid() != 0)


def test_a_service_has_few_variables_and_a_user_all() -> None:
    variables = {"PATH": "/bin", "HOME": "/home/me", "PYTHONPATH": "/tmp"}
    assert environment(variables, privileged=True) == {"PATH": "/bin"}
    assert environment(variables, privileged=False) == variables


def test_an_answer(tmp_path: Path) -> None:
    answer = ask(str(script(tmp_path / "it", "echo out; echo err >&2; exit 3")))
    assert (answer.fault, answer.excess, answer.status) == ("", "", 3)
    assert (answer.output, answer.errors, answer.end) == (b"out\n", b"err\n", "exits with status 3")
    assert 0 < answer.seconds < 10


def test_a_signal(tmp_path: Path) -> None:
    answer = ask(str(script(tmp_path / "it", "kill -9 $$")))
    assert (answer.status, answer.end) == (-signal.SIGKILL, "is killed by SIGKILL")
    assert Answer().end == ""
    assert Answer(status=-50).end == "is killed by signal 50"


@pytest.mark.parametrize("body", ["exec sleep 600", "sleep 600 & echo '{}'", "exec >&- 2>&-; exec sleep 600"])
def test_who_takes_too_long_is_stopped_with_all_that_it_has_started(body: str, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with open(os.open(fifo, os.O_RDONLY | os.O_NONBLOCK), "rb") as reader:
        answer = ask(str(script(tmp_path / "it", f"exec 9> {fifo}\n{body}")), patience=SHORT)
        assert answer.excess == "it has not ended within 0.3 s"
        assert select.select([reader], [], [], PATIENCE)[0], "somebody still has the fifo open"


class Signalled(Exception):
    """What a signal raises."""


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
def test_none_outlives_a_signal_that_comes_while_it_is_started(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    def end(*_: object) -> None:
        raise Signalled

    class Popen(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            signal.raise_signal(number)

    monkeypatch.setattr(subprocess, "Popen", Popen)
    before = signal.signal(number, end)
    try:
        with open(os.open(fifo, os.O_RDONLY | os.O_NONBLOCK), "rb") as reader:
            with pytest.raises(Signalled):
                ask(str(script(tmp_path / "it", f"exec 9> {fifo}; exec sleep 600")))
            assert signal.getsignal(number) == end
            holder = os.open(fifo, os.O_WRONLY)  # so that there was one, even if the program was too late
            os.close(holder)
            assert select.select([reader], [], [], PATIENCE)[0], "somebody still has the fifo open"
    finally:
        signal.signal(number, before)


def test_who_prints_too_much_is_stopped(tmp_path: Path) -> None:
    answer = ask(str(script(tmp_path / "it", "exec cat /dev/zero")))
    assert answer.excess == "it prints more than 4 MiB"
    assert OUTPUT_LIMIT < len(answer.output) < 2 * OUTPUT_LIMIT


def test_who_cannot_be_started(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").write_text("#!/bin/sh\n")
    script(tmp_path / "no interpreter", "").write_text("#!/nowhere/sh\n")
    script(tmp_path / "no program", "").write_bytes(b"\x7fELF")
    for name, message in {
        "nowhere": "No such file or directory",
        "folder": "Permission denied",
        "text": "Permission denied",
        "text/it": "Not a directory",
        "no interpreter": "No such file or directory",
        "no program": "Exec format error",
    }.items():
        path = tmp_path / name
        assert ask(str(path)) == Answer(f"{path} cannot be started: {message}")
    assert ask(None).fault == "it names no program"
    assert ask("").fault == "there is no program ''"
    assert ask("vhost-user-nowhere").fault == "there is no program 'vhost-user-nowhere'"


def test_where_a_name_without_a_slash_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    path = script(tmp_path / "it", "echo $0")
    assert find("it") == str(path)
    assert find("/usr/bin/it") == "/usr/bin/it"
    assert find("usr/bin/it") == "/usr/bin/it"
    assert find("") is None
    assert ask(sys.executable.lstrip("/")).status == 2  # which has no such option
