"""A unix socket as a port's line: one client at a time is there."""

import asyncio

from vhost_user_console.hang_up import HangUp
from vhost_user_console.line import Line
from vhostd import Grants, listen
from vhostd.host.accept import accept


class SocketLine(Line):
    """Listens at `path`. Further clients wait until the one that is there has gone."""

    def __init__(self, path: str, *, mode: int | None = None, group: int | None = None) -> None:
        super().__init__()
        self.path = path
        self._endpoint = listen(path, mode=mode, group=group)
        self._watch = HangUp(self._hang_up)
        self._is_free = asyncio.Event()

    @property
    def place(self) -> str:
        return self.path

    def grants(self) -> Grants:
        """The removal of the socket's file."""
        return self._endpoint.grants()

    async def run(self) -> None:
        """Has one client after the other be there."""
        self._watch.start()
        try:
            while True:
                with await accept(self._endpoint.socket, self.path) as client:
                    self._watch.add(client.fileno())
                    self._is_free.clear()
                    self._opened(client.fileno())
                    await self._is_free.wait()
        finally:
            self._drop()
            self._watch.stop()

    def close(self) -> None:
        """Listens no more, and removes the socket's file; idempotent."""
        self._watch.close()
        self._endpoint.close()

    def _drop(self) -> None:
        super()._drop()
        self._is_free.set()
