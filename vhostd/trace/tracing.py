"""The tracer: whoever connects to it is connected to the back-end."""

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime

from vhostd.errors import SetupError
from vhostd.host.accept import accept
from vhostd.trace.entries import AnyEntry, Head
from vhostd.trace.outlet import Outlet
from vhostd.trace.session import Session

Connect = Callable[[], Awaitable[socket.socket]]


class Tracer:
    """Serves front-ends that connect to a listening socket, one after the other or together.

    The back-end decides whether it takes a second one, as it does without a tracer.
    """

    def __init__(
        self, listener: socket.socket, connect: Connect, outlets: Iterable[Outlet], *, memory: bool
    ) -> None:
        self._listener = listener
        self._connect = connect
        self._outlets = tuple(outlets)
        self._memory = memory
        self._start = time.monotonic()

    async def run(self) -> None:
        """Serves until it is cancelled."""
        self._tell(Head(vhostd_trace=1, started=datetime.now(UTC).isoformat(timespec="seconds")))
        number = 0
        async with asyncio.TaskGroup() as group:
            while True:
                front = await accept(self._listener, "vhostctl trace")
                number += 1
                group.create_task(self._serve(number, front))
                del front

    async def _serve(self, number: int, front: socket.socket) -> None:
        session = Session(number, self._clock, self._tell, memory=self._memory)
        session.note(f"front-end {number} has connected")
        try:
            with front:
                back = await self._connect()
                await session.run(front, back)
        except SetupError as error:
            session.note(str(error))
        except Exception as error:  # it costs this connection, and no other
            session.note(f"a fault of the tracer: {error!r}")
        session.note(f"connection {number} has ended")

    def _clock(self) -> float:
        return round(time.monotonic() - self._start, 6)

    def _tell(self, entry: AnyEntry) -> None:
        for outlet in self._outlets:
            outlet.put(entry)
