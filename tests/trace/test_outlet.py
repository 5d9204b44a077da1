"""Lines are written beside the event loop, and nobody waits for who reads them."""

import os
import threading
from collections.abc import Iterator

import pytest

from vhostd.trace import outlet as module
from vhostd.trace.entries import AnyEntry, Note, Piece, Rings
from vhostd.trace.outlet import Outlet


def spell(entry: AnyEntry) -> str:
    return entry.note if isinstance(entry, Note) else "rings"


def note(text: str) -> Note:
    return Note(time=0, connection=1, note=text)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    os.close(reading)


def read_all(fd: int) -> list[str]:
    with open(fd, closefd=False) as file:
        return file.read().splitlines()


def test_lines_are_written_in_order(pipe: tuple[int, int]) -> None:
    failures: list[str] = []
    outlet = Outlet(pipe[1], spell, failures.append)
    for i in range(100):
        outlet.put(note(str(i)))
    outlet.close()
    assert read_all(pipe[0]) == [str(i) for i in range(100)]
    assert not failures


def test_what_a_slow_reader_misses_is_told(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 3 * module.BASE)
    block = threading.Event()

    def slow(entry: AnyEntry) -> str:
        block.wait()
        return spell(entry)

    outlet = Outlet(pipe[1], slow, print)
    for i in range(20):
        outlet.put(note(str(i)))
    block.set()
    while outlet._size:
        os.sched_yield()
    outlet.put(note("at last"))
    outlet.close()
    lines = read_all(pipe[0])
    assert lines[0] == "0"
    assert lines[-1] == "at last"
    missing = 20 - (len(lines) - 2)
    assert lines[-2] == f"lines missing here: {missing}, since their reader was too slow"


def test_what_the_rings_hold_counts(pipe: tuple[int, int]) -> None:
    piece = Piece(addr=0, data=bytes(module.MOST // 4))
    outlet = Outlet(pipe[1], spell, print)
    outlet.put(Rings(time=0, connection=1, ring=0, event="kick", chains=1, done=0, memory=(piece,)))
    outlet.put(note("and more"))
    outlet.close()
    assert read_all(pipe[0]) == ["lines missing here: 1, since their reader was too slow", "and more"]


def test_a_closed_pipe_is_no_failure() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    failures: list[str] = []
    outlet = Outlet(writing, spell, failures.append)
    for _ in range(10):
        outlet.put(note("unread"))
    outlet.close()
    assert not failures


def test_a_full_disk_is_told_once() -> None:
    failures: list[str] = []
    outlet = Outlet(os.open("/dev/full", os.O_WRONLY), spell, failures.append)
    for _ in range(10):
        outlet.put(note("for nobody"))
    outlet.close()
    assert failures == ["No space left on device"]
