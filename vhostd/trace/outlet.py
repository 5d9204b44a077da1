"""Where the lines of a trace go: a terminal, a pipe, a file. A thread writes them, since each may wait."""

import os
import threading
from collections.abc import Callable

from vhostd.trace.entries import AnyEntry, Entry, Message, Note, Rings

MOST = 1 << 26  # bytes of entries that may wait to be written
BASE = 1 << 10  # bytes of an entry, about
MOMENT = 0.02  # seconds that a line may be late, so that messages are not
CLOSE_PATIENCE = 5.0  # seconds that the end waits for a slow reader


class Outlet:
    """Writes each entry to an fd, which it owns, as a line.

    What does not fit while the reader is slow is lost, and a note says how many. When nobody reads any more,
    or the disk is full, the rest is lost. `failed` hears why, in the thread, unless it is a closed pipe.
    """

    def __init__(self, fd: int, spell: Callable[[AnyEntry], str], failed: Callable[[str], None]) -> None:
        self._fd = fd
        self._spell = spell
        self._failed = failed
        self._waiting: list[AnyEntry] = []
        self._is_closed = False
        self._size = 0
        self._lost = 0
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="trace", daemon=True)
        self._thread.start()

    def put(self, entry: AnyEntry) -> None:
        """Has the entry written; never waits."""
        size = size_of(entry)
        with self._changed:
            if self._size + size > MOST:
                self._lost += 1
                return
            if self._lost and isinstance(entry, Entry):
                note = f"lines missing here: {self._lost}, since their reader was too slow"
                self._waiting.append(Note(time=entry.time, connection=entry.connection, note=note))
                self._size += BASE
                self._lost = 0
            self._waiting.append(entry)
            self._size += size
            self._changed.notify()

    def close(self) -> None:
        """Has the rest written, and closes the fd."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join(CLOSE_PATIENCE)

    def _run(self) -> None:
        writes = True
        while entries := self._next():  # to the end: else they would pile up
            if writes:
                writes = self._write_lines(entries)
        os.close(self._fd)

    def _next(self) -> list[AnyEntry]:
        """What has come, a moment later: its lines do not hold a burst of messages up. Empty at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closed)
            self._changed.wait_for(lambda: self._is_closed, MOMENT)
            entries, self._waiting, self._size = self._waiting, [], 0
            return entries

    def _write_lines(self, entries: list[AnyEntry]) -> bool:
        """Whether more may be written."""
        try:
            for entry in entries:
                self._write(f"{self._spell(entry)}\n".encode(errors="backslashreplace"))
        except BrokenPipeError:
            return False
        except Exception as error:  # a full disk, or a fault of ours: the relay goes on without a trace
            self._failed(getattr(error, "strerror", None) or repr(error))
            return False
        return True

    def _write(self, data: bytes) -> None:
        while data:
            try:
                data = data[os.write(self._fd, data) :]
            except BlockingIOError:  # whoever shares it has made it non-blocking
                threading.Event().wait(0.01)


def size_of(entry: AnyEntry) -> int:
    """About the bytes that the entry takes."""
    if isinstance(entry, Message):
        return BASE + 4 * len(entry.payload)
    if isinstance(entry, Rings):
        return BASE + sum(BASE + 4 * len(piece.data) for piece in entry.memory)
    return BASE
