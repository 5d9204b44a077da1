"""Connections whose messages are printed, a line each."""

import asyncio
import socket
import time

from vhostd.ctl.output import printable, show
from vhostd.trace.decoding import Decoder
from vhostd.trace.entries import AnyEntry, Message
from vhostd.trace.session import Session
from vhostd.trace.text import line_of


class Shown:
    """Called with a connection, it returns another one that leads there, and prints what is said on it.

    `kind` is the type of the device, to name its feature bits.
    """

    def __init__(self, kind: str) -> None:
        self._decoder = Decoder(kind)
        self._start = time.monotonic()
        self._number = 0
        self._sessions: set[asyncio.Task[None]] = set()

    def __call__(self, connection: socket.socket) -> socket.socket:
        self._number += 1
        ours, theirs = socket.socketpair()
        session = Session(self._number, self._clock, self._tell, memory=False)
        session.note(f"connection {self._number}")
        task = asyncio.create_task(session.run(theirs, connection))
        self._sessions.add(task)
        task.add_done_callback(self._sessions.discard)
        return ours

    def _clock(self) -> float:
        return round(time.monotonic() - self._start, 6)

    def _tell(self, entry: AnyEntry) -> None:
        show([printable(line_of(self._decoder.decode(entry) if isinstance(entry, Message) else entry))])
