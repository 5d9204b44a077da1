"""One AF_UNIX stream that carries messages and fds, on the event loop."""

import array
import asyncio
import socket
from collections.abc import Callable
from enum import IntEnum

from vhostd.errors import MalformedMessage
from vhostd.fds import Fd
from vhostd.framing import MAX_FDS, Message, MessageReader
from vhostd.messages import Request

_FD_SIZE = array.array("i").itemsize
_CREDENTIALS_SIZE = 12  # struct ucred, which comes along if a launcher has set SO_PASSCRED
_ANCILLARY = socket.CMSG_SPACE(MAX_FDS * _FD_SIZE) + socket.CMSG_SPACE(_CREDENTIALS_SIZE)


class Channel:
    """Receives and sends whole messages over a connected socket, which it owns.

    One task at a time receives, one at a time sends.
    """

    def __init__(
        self, sock: socket.socket, requests: type[IntEnum] = Request, *, replies: bool = False
    ) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._reader = MessageReader(requests, replies=replies)
        self._loop = asyncio.get_running_loop()
        self._waiters: set[asyncio.Future[None]] = set()
        self._failure: Exception | None = None

    async def receive(self) -> Message | None:
        """The next message, whose fds the caller must take or close; None once the peer has gone.

        Raises MalformedMessage if what came is no message, and what `abort` was called with.
        """
        while self._failure is None:
            try:
                data, fds = self._read()
            except BlockingIOError:
                await self._ready(self._loop.add_reader, self._loop.remove_reader)
                continue
            except ConnectionError:
                return None
            if not data:
                self._check_end()
                return None
            if message := self._reader.feed(data, fds):
                return message
        raise self._failure

    async def send(self, data: bytes, fds: tuple[int, ...] = ()) -> None:
        """Sends the bytes, the fds with the first of them; waits while the peer does not read.

        Raises ConnectionError once the peer has gone, and what `abort` was called with. The fds stay the
        caller's.
        """
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        while data:
            if self._failure is not None:
                raise self._failure
            try:
                sent = self._socket.sendmsg([data], ancillary)
            except BlockingIOError:
                await self._ready(self._loop.add_writer, self._loop.remove_writer)
                continue
            data, ancillary = data[sent:], []

    def abort(self, failure: Exception) -> None:
        """Makes what is waiting here, and all that comes later, raise `failure`."""
        self._failure = self._failure or failure
        for waiter in self._waiters:
            _wake(waiter)

    def close(self) -> None:
        """Closes the socket and what a cut message had brought; idempotent."""
        self._reader.close()
        self._socket.close()

    def _read(self) -> tuple[bytes, list[Fd]]:
        data, ancillary, flags, _ = self._socket.recvmsg(
            self._reader.wants, _ANCILLARY, socket.MSG_CMSG_CLOEXEC
        )
        fds: list[Fd] = []
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                whole = len(content) - len(content) % _FD_SIZE
                fds += map(Fd, array.array("i", content[:whole]))
        if flags & socket.MSG_CTRUNC:
            self._reader.feed(b"", fds)  # which closes them with the channel
            raise MalformedMessage(f"more than {MAX_FDS} fds with one message, or no room here for them")
        return data, fds

    def _check_end(self) -> None:
        if not self._reader.between_messages:
            raise MalformedMessage("the connection ended in the middle of a message")

    async def _ready(self, watch: Callable[..., object], unwatch: Callable[..., object]) -> None:
        waiter = self._loop.create_future()
        self._waiters.add(waiter)
        watch(self._socket, _wake, waiter)
        try:
            await waiter
        finally:
            unwatch(self._socket)
            self._waiters.remove(waiter)


def _wake(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)
