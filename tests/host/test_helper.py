"""Helper: processes beside a program, which come and go as they are told to."""

import asyncio
import logging
import os
import select
import socket
import sys
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.conftest import Run
from vhostd.errors import SetupError
from vhostd.host.helper import Helper

PATIENCE = 20.0


@pytest.fixture
def helper() -> Iterator[Helper]:
    with closing(Helper("helper", "tests.host.helped", ["word"])) as made:
        yield made


def said(sock: socket.socket, what: bytes) -> bytes:
    """The answer to a packet; nothing if the other side has gone."""
    sock.settimeout(PATIENCE)
    try:
        sock.send(what)
        return sock.recv(64)
    except ConnectionError:
        return b""


def pid_of(sock: socket.socket) -> int:
    return int(said(sock, b"pid").removeprefix(b"pid"))


def is_gone(sock: socket.socket) -> bool:
    """Waits for the other side to go."""
    sock.settimeout(PATIENCE)
    return sock.recv(64) == b""


def test_each_connection_has_a_process_of_its_own(helper: Helper) -> None:
    with helper.connect() as first:
        pid = pid_of(first)
        with helper.connect() as second:
            assert pid_of(second) not in (pid, os.getpid())
            assert is_gone(first)


def test_it_has_nothing_of_the_program_s() -> None:
    with open(os.devnull) as file:
        os.set_inheritable(file.fileno(), True)
        with closing(Helper("helper", "tests.host.helped")) as helper, helper.connect() as sock:
            standard_and_its_own, of_the_listing = 4, 1
            assert len(said(sock, b"fds").split()) == standard_and_its_own + of_the_listing


def test_it_ends_when_it_is_told_to(helper: Helper) -> None:
    with helper.connect() as sock:
        assert pid_of(sock)
        helper.end()
        assert is_gone(sock)
        helper.end()
    with helper.connect() as sock:
        assert pid_of(sock)


def test_it_ends_with_the_program() -> None:
    with closing(Helper("helper", "tests.host.helped")) as helper, helper.connect() as sock:
        pidfd = os.pidfd_open(pid_of(sock))
        helper.close()
        assert select.select([pidfd], [], [], PATIENCE)[0]
        os.close(pidfd)


def test_nobody_is_there_without_a_spawner(helper: Helper, caplog: pytest.LogCaptureFixture) -> None:
    helper.close()
    with helper.connect() as sock:
        assert said(sock, b"pid") == b""
    assert "the helper's spawner: Bad file descriptor" in caplog.text


@pytest.mark.parametrize(
    ("word", "line"),
    [(b"crash", "the helper was ended by SIGSEGV"), (b"exit", "the helper has ended with status 3")],
)
def test_the_log_says_how_it_has_ended(
    run_async: Run, caplog: pytest.LogCaptureFixture, word: bytes, line: str
) -> None:
    async def main() -> None:
        with closing(Helper("helper", "tests.host.helped", ["word"])) as helper, helper.connect() as sock:
            helper.listen()
            helper.listen()
            assert said(sock, word) == b""
            while line not in caplog.text or "helper: it is there ['word']" not in caplog.text:
                await asyncio.sleep(0)

    with caplog.at_level(logging.INFO):
        run_async(main)


def test_why_it_ends_at_its_start() -> None:
    with closing(Helper("helper", "tests.host.nothing")) as helper, helper.connect() as sock:
        assert is_gone(sock)
        assert helper.last_line().endswith("No module named tests.host.nothing")
        assert helper.last_line() == ""


def test_a_python_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with pytest.raises(SetupError, match="/nonexistent/python: No such file or directory"):
        Helper("helper", "tests.host.helped")
