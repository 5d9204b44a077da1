"""Signals go into eventfds of every kind of fill, and none waits."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from vhostd.ring import eventfd

FULL = (1 << 64) - 2  # the most that write(2) puts into it


@pytest.fixture(params=[0, os.EFD_NONBLOCK], ids=["blocking", "non-blocking"])
def fd(request: pytest.FixtureRequest) -> Iterator[int]:
    number = os.eventfd(0, request.param)
    yield number
    os.close(number)


@pytest.mark.parametrize("times", [1, 2, 1000])
def test_each_signal_counts(times: int, fd: int) -> None:
    for _ in range(times):
        eventfd.signal(fd)
    assert os.eventfd_read(fd) == times


def test_a_full_one_keeps_nobody_waiting(fd: int) -> None:
    os.eventfd_write(fd, FULL)
    for _ in range(1000):
        eventfd.signal(fd)
    assert os.eventfd_read(fd) >= FULL


def test_a_semaphore_gives_one_at_a_time() -> None:
    fd = os.eventfd(0, os.EFD_SEMAPHORE)
    eventfd.signal(fd)
    eventfd.signal(fd)
    assert os.eventfd_read(fd) == os.eventfd_read(fd) == 1
    os.close(fd)


def test_what_is_none_is_refused() -> None:
    reader, writer = os.pipe()
    for fd in (reader, writer, -1, 1 << 20):
        with pytest.raises(OSError, match=r"Invalid argument|Bad file descriptor"):
            eventfd.signal(fd)
    os.close(reader)
    os.close(writer)


def test_without_aio_it_is_a_write() -> None:
    """As in a process that is not allowed to have any of the machine's."""
    script = """
import ctypes, errno, os
class Rule(ctypes.Structure):
    _fields_ = ("code", ctypes.c_ushort), ("jt", ctypes.c_ubyte), ("jf", ctypes.c_ubyte), ("k", ctypes.c_uint)
IO_SETUP, FAIL, ALLOW = 206, 0x50000 | errno.EAGAIN, 0x7FFF0000
rules = (Rule * 4)((0x20, 0, 0, 0), (0x15, 0, 1, IO_SETUP), (6, 0, 0, FAIL), (6, 0, 0, ALLOW))
class Filter(ctypes.Structure):
    _fields_ = ("len", ctypes.c_ushort), ("filter", ctypes.POINTER(Rule))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(Filter(4, rules))) == 0, os.strerror(ctypes.get_errno())
from vhostd.ring import eventfd
fd = os.eventfd(0, os.EFD_NONBLOCK)
eventfd.signal(fd)
assert os.eventfd_read(fd) == 1
os.eventfd_write(fd, (1 << 64) - 2)
try:
    eventfd.signal(fd)
except BlockingIOError:
    print("full")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("full\n", "")
