"""The cursor that QEMU would show, read from QEMU's memory.

A screendump has no cursor in it, and QEMU 10 shows vhost-user-gpu on no display without OpenGL ("The
console requires display DMABUF support"), for which there must be a GPU. So this looks where QEMU
keeps what it would hand to a display (its include/ui/console.h and ui/console.c).
"""

import struct
import time
from collections.abc import Iterator
from pathlib import Path

TIMEOUT = 20.0
PAUSE = 0.05  # seconds between two looks

HEADER = struct.Struct("<2H3i")  # QEMUCursor before its pixels: width, height, hot_x, hot_y, users
PLACE = struct.Struct("<Q2i?")  # QemuGraphicConsole: cursor, cursor_x, cursor_y, cursor_on


def wait_cursor(pid: int, pixels: bytes, hot: tuple[int, int], place: tuple[int, int]) -> None:
    """Returns when the QEMU process `pid` shows a cursor of 64 x 64 pixels at `place`.

    `hot` is its hot spot, `pixels` are blue, green, red and alpha bytes. Raises AssertionError when
    that does not come in time.
    """
    _wait(pid, pixels, hot, (*place, True))


def wait_no_cursor(pid: int, pixels: bytes) -> None:
    """Returns when QEMU no longer shows the cursor that had these pixels.

    Raises AssertionError when that does not come in time.
    """
    _wait(pid, pixels, None, (0, 0, False))  # the place that Linux gives a cursor which it hides


def _wait(pid: int, pixels: bytes, hot: tuple[int, int] | None, place: tuple[int, int, bool]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not _is_there(pid, pixels, hot, place):
        assert time.monotonic() < deadline, f"QEMU has none with hot spot {hot} and x, y, visible {place}"
        time.sleep(PAUSE)


def _is_there(pid: int, pixels: bytes, hot: tuple[int, int] | None, place: tuple[int, int, bool]) -> bool:
    start, heap = _heap(pid)
    for at in _find_all(heap, pixels):
        cursor = at - HEADER.size
        size_and_hot = HEADER.unpack_from(heap, cursor)[:4]
        if (hot is None or size_and_hot == (64, 64, *hot)) and PLACE.pack(start + cursor, *place) in heap:
            return True
    return False


def _find_all(data: bytes, wanted: bytes) -> Iterator[int]:
    at = data.find(wanted)
    while at >= 0:
        yield at
        at = data.find(wanted, at + 1)


def _heap(pid: int) -> tuple[int, bytes]:
    """The address of a process's heap, and what is in it."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    heap = next(line for line in lines if line.endswith("[heap]"))
    start, end = (int(each, 16) for each in heap.split()[0].split("-"))
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        memory.seek(start)
        return start, memory.read(end - start)
