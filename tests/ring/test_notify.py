"""Signals go into eventfds and pipes of every kind of fill, and none waits."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress

import pytest

from vhostd.ring import notify

FULL = (1 << 64) - 2  # the most that write(2) puts into it


@pytest.fixture(params=[0, os.EFD_NONBLOCK], ids=["blocking", "non-blocking"])
def fd(request: pytest.FixtureRequest) -> Iterator[int]:
    number = os.eventfd(0, request.param)
    yield number
    os.close(number)


@pytest.mark.parametrize("times", [1, 2, 1000])
def test_each_signal_counts(times: int, fd: int) -> None:
    for _ in range(times):
        notify.signal_eventfd(fd)
    assert os.eventfd_read(fd) == times


def test_a_full_one_keeps_nobody_waiting(fd: int) -> None:
    os.eventfd_write(fd, FULL)
    for _ in range(1000):
        notify.signal_eventfd(fd)
    assert os.eventfd_read(fd) >= FULL


def test_a_semaphore_gives_one_at_a_time() -> None:
    fd = os.eventfd(0, os.EFD_SEMAPHORE)
    notify.signal_eventfd(fd)
    notify.signal_eventfd(fd)
    assert os.eventfd_read(fd) == os.eventfd_read(fd) == 1
    os.close(fd)


def test_what_was_signalled_is_cleared_at_once(fd: int) -> None:
    assert not notify.clear_eventfd(fd)
    for _ in range(3):
        notify.signal_eventfd(fd)
    assert notify.clear_eventfd(fd)
    assert not notify.clear_eventfd(fd)


def test_what_cannot_be_cleared_says_why() -> None:
    for fd in (-1, 1 << 20):
        with pytest.raises(OSError, match="Bad file descriptor"):
            notify.clear_eventfd(fd)


def test_what_is_none_is_refused() -> None:
    reader, writer = os.pipe()
    for fd in (reader, writer, -1, 1 << 20):
        with pytest.raises(OSError, match=r"Invalid argument|Bad file descriptor"):
            notify.signal_eventfd(fd)
    os.close(reader)
    os.close(writer)


def test_it_may_be_done_without_from_now_on() -> None:
    script = """
import os
from vhostd.ring import notify
fd = os.eventfd(0)
assert notify.has_aio()
notify.signal_eventfd(fd)
notify.end_aio()
notify.end_aio()
assert not notify.has_aio()
try:
    notify.signal_eventfd(fd)
except OSError:
    print(os.eventfd_read(fd))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("1\n", "")


# --- Pipes --------------------------------------------------------------------------------------------------


@pytest.fixture(params=[0, os.O_NONBLOCK], ids=["blocking", "non-blocking"])
def pipe(request: pytest.FixtureRequest) -> Iterator[list[int]]:
    fds = [*os.pipe2(request.param)]
    yield fds
    for fd in fds:
        os.close(fd)


def test_what_is_written_is_read(pipe: list[int]) -> None:
    reader, writer = pipe
    with pytest.raises(BlockingIOError):
        notify.read_pipe(reader)
    for count in (1, 3, 10):
        for _ in range(count):
            notify.write_pipe(writer)
        assert notify.read_pipe(reader) == 8 * count
    os.write(writer, bytes(5000))
    assert notify.read_pipe(reader) == 4096
    assert notify.read_pipe(reader) == 5000 - 4096
    notify.write_pipe(writer)
    assert os.read(reader, 100) == (1).to_bytes(8, "little")


def test_a_full_pipe_keeps_nobody_waiting(pipe: list[int]) -> None:
    reader, writer = pipe
    written = 0
    with suppress(BlockingIOError):
        while True:
            notify.write_pipe(writer)
            written += 1
    assert written
    with pytest.raises(BlockingIOError):
        notify.write_pipe(writer)
    assert notify.read_pipe(reader)
    notify.write_pipe(writer)


@pytest.mark.parametrize("gone", ["reader", "writer"])
def test_an_end_that_has_gone(pipe: list[int], gone: str) -> None:
    reader, writer = pipe
    if gone == "writer":
        os.close(pipe.pop())
        assert notify.read_pipe(reader) == 0
    else:
        os.close(pipe.pop(0))
        with pytest.raises(BrokenPipeError):
            notify.write_pipe(writer)


def test_what_is_no_pipe_is_refused() -> None:
    fd = os.eventfd(0)
    for number in (fd, -1, 1 << 20):
        for deed in (notify.read_pipe, notify.write_pipe):
            with pytest.raises(OSError, match=r"Bad file descriptor|Invalid argument"):
                deed(number)
    os.close(fd)
