"""`vhostctl trace` and `vhostctl replay`, as a user runs them, with a program of ours behind."""

import asyncio
import json
import os
import select
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.programs import (
    PATIENCE,
    Program,
    connect,
    environment,
    executable,
    get_features,
    is_refused,
    listens_at,
)
from vhostd.frontend import Frontend, SharedMemory

RNG = f"{executable('vhost-user-rng')} --socket-path={{socket}} --log-level=warning"


@contextmanager
def tracer(folder: Path, *options: str, stdout: int = subprocess.PIPE) -> Iterator[Program]:
    """A tracer that listens at `folder / "listen"`."""
    listen = folder / "listen"
    command = [executable("vhostctl"), "trace", f"--listen={listen}", *options]
    with Program(command, stdout=stdout) as program:
        program.until(lambda _: listens_at(listen))
        yield program


def end(program: Program) -> tuple[list[str], str]:
    """Ends it with SIGTERM; what it has printed on stdout, and on stderr."""
    program.send(signal.SIGTERM)
    out, err = program.process.communicate(timeout=60)
    assert program.process.returncode == 0, err
    return out.decode().splitlines(), err.decode()


def ask_for_entropy(path: Path) -> bytes:
    """A front-end's whole life."""

    async def main() -> bytes:
        frontend = await Frontend.connect(str(path))
        memory = SharedMemory(1 << 20)
        await frontend.negotiate()
        await frontend.share(memory)
        queue = await frontend.start(memory, index=0, size=8)
        entropy = await queue.request(room=64)
        await frontend.stop(queue)
        queue.close()
        frontend.close()
        memory.close()
        return entropy

    return asyncio.run(main())


def replay(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [executable("vhostctl"), "replay", *map(str, arguments)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_program_behind_it_serves_as_ever_and_again(tmp_path: Path) -> None:
    with tracer(tmp_path, f"--exec={RNG}", f"--write={tmp_path / 'file'}", "--memory") as program:
        assert len(ask_for_entropy(tmp_path / "listen")) == 64
        assert len(ask_for_entropy(tmp_path / "listen")) == 64
        lines, err = end(program)
    assert not err
    assert not (tmp_path / "listen").exists()
    assert sum("-> SET_VRING_KICK          index=0 [eventfd]" in line for line in lines) == 2
    assert sum("-> kick                    ring=0 chains=1 done=0" in line for line in lines) == 2
    assert any(line.endswith("-- connection 1 has ended") for line in lines)
    recording = (tmp_path / "file").read_text().splitlines()
    assert len(recording) == len(lines)
    assert [json.loads(line).get("connection", 0) for line in recording][:2] == [0, 1]
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600
    for connection in (1, 2):
        arguments = (tmp_path / "file", f"--exec={RNG}", "--memory", f"--connection={connection}")
        done = replay(*arguments)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.endswith(" replies as recorded, 0 differences\n")
    done = replay(tmp_path / "file", f"--exec={RNG}")
    assert done.returncode == 1
    assert done.stdout.splitlines()[0] == "GET_VRING_BASE index=0 num=0, was index=0 num=1"
    done = replay(tmp_path / "file", f"--exec={RNG}", "--connection=3")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"vhostctl: error: {tmp_path / 'file'} has no connection 3\n"


def test_json_on_stdout_is_a_recording(tmp_path: Path) -> None:
    with tracer(tmp_path, f"--exec={RNG}", "--json") as program:
        ask_for_entropy(tmp_path / "listen")
        lines, _ = end(program)
    (tmp_path / "file").write_text("\n".join(lines))
    done = replay(tmp_path / "file", f"--exec={RNG}")
    assert "replies as recorded, 1 differences" in done.stdout


def test_the_connections_go_on_when_nobody_reads_the_lines(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    with tracer(tmp_path, f"--exec={RNG}", stdout=writing) as program:
        os.close(writing)
        os.close(reading)
        with connect(tmp_path / "listen") as front:
            for _ in range(100):
                get_features(front)
        program.send(signal.SIGINT)
        assert program.ends() == (0, [])


def test_a_terminal_that_stands_still_keeps_nobody_waiting(tmp_path: Path) -> None:
    """The pipe is full long before the end."""
    reading, writing = os.pipe()
    with tracer(tmp_path, f"--exec={RNG}", stdout=writing) as program:
        os.close(writing)
        with connect(tmp_path / "listen") as front:
            for _ in range(2000):
                get_features(front)
        program.process.kill()
    os.close(reading)


def test_a_program_that_has_ended_is_started_again(tmp_path: Path) -> None:
    with tracer(tmp_path, f"--exec={RNG} --once") as program:
        with connect(tmp_path / "listen") as front:
            assert is_refused(front)
        _, err = end(program)
    assert "--once" in err
    with tracer(tmp_path, f"--exec={RNG}") as program:
        for _ in range(2):
            with connect(tmp_path / "listen") as front:
                get_features(front)
                (child,) = children(program.pid)
                pidfd = os.pidfd_open(child)
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                select.select([pidfd], [], [])  # else the next connection may be one to it
                os.close(pidfd)
                assert front.recv(1) == b""
        lines, _ = end(program)
    assert sum("connection" in line and "has ended" in line for line in lines) == 2


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_back_end_that_is_not_there(tmp_path: Path) -> None:
    with tracer(tmp_path, f"--connect={tmp_path / 'nobody'}") as program:
        with connect(tmp_path / "listen") as front:
            assert is_refused(front)
        lines, _ = end(program)
    assert f"cannot connect to {tmp_path / 'nobody'}: No such file or directory" in lines[2]


@pytest.mark.parametrize(
    ("options", "status", "error"),
    [
        (["--exec=program --socket-path=/tmp/x"], 2, "the command needs {socket}"),
        (["--exec=program '{socket}"], 2, "No closing quotation"),
        ([], 2, "one of the arguments --connect --exec is required"),
        (["--connect=x", "--write=/nowhere/file"], 1, "/nowhere/file: No such file or directory"),
    ],
)
def test_what_cannot_be_is_told(tmp_path: Path, options: list[str], status: int, error: str) -> None:
    done = subprocess.run(
        [executable("vhostctl"), "trace", f"--listen={tmp_path / 'listen'}", *options],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == status
    assert error in done.stderr
    assert not (tmp_path / "listen").exists()


def test_what_a_program_has_started_ends_with_it(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(
        f"sleep 1000 &\necho $! >{tmp_path}/pid\n{executable('vhost-user-rng')} --socket-path=$1\n"
    )
    with tracer(tmp_path, f"--exec=sh {script} {{socket}}") as program:
        ask_for_entropy(tmp_path / "listen")
        other = os.pidfd_open(int((tmp_path / "pid").read_text()))
        end(program)
    try:
        assert select.select([other], [], [], PATIENCE)[0]
    finally:
        os.close(other)
