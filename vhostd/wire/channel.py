"""One AF_UNIX stream that carries messages and fds, on the event loop.

The process that passed the socket may share its O_NONBLOCK flag, and clear it. So every call uses
MSG_DONTWAIT instead.
"""

import array
import asyncio
import logging
import select
import socket
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple

from vhostd.errors import FrontendGone, MalformedMessage, forget
from vhostd.wire.fds import Fd, close_all
from vhostd.wire.framing import MAX_FDS, Dialect, Message, MessageReader
from vhostd.wire.sockets import is_other_end

log = logging.getLogger(__name__)

_FD_SIZE = array.array("i").itemsize
# struct ucred and an fd come with each message if a launcher has set SO_PASSCRED or SO_PASSPIDFD.
_CREDENTIALS_SIZE = 12
_SCM_PIDFD = 4
_ANCILLARY = sum(map(socket.CMSG_SPACE, (MAX_FDS * _FD_SIZE, _CREDENTIALS_SIZE, _FD_SIZE)))


class Received(NamedTuple):
    """Bytes, and the fds that came with them."""

    data: bytes
    fds: list[Fd]


class Channel:
    """Receives and sends whole messages over a connected socket, which it owns.

    Only one task at a time may receive, and one may send.
    """

    def __init__(self, sock: socket.socket, dialect: Dialect, *, replies: bool = False) -> None:
        """`replies`: the channel receives replies of the dialect instead of requests."""
        sock.setblocking(False)
        self.dialect = dialect
        self._socket = sock
        self._reader = MessageReader(dialect, replies=replies)
        self._loop = asyncio.get_running_loop()
        self._waiters: set[asyncio.Future[None]] = set()
        self._failure: Exception | None = None

    async def receive_raw(self, size: int) -> Received:
        """The next bytes, at most so many, whether they are a message or not; none once the peer has gone.

        For those who test a peer. Messages that were begun with `receive` are lost to it.
        """
        while self._failure is None:
            try:
                return self._read(size)
            except BlockingIOError:
                await self._readable()
            except ConnectionError:
                return Received(b"", [])
        raise self._failure

    async def receive(self) -> Message | None:
        """The next message, whose fds the caller must take or close; None once the peer has gone.

        Raises MalformedMessage for bytes that are not a message, and the exception of `abort`.
        """
        while self._failure is None:
            try:
                data, fds = self._read(self._reader.wants)
            except BlockingIOError:
                await self._readable()
                continue
            except ConnectionError:
                return None
            if not data:
                self._check_end()
                return None
            if message := self._reader.feed(data, fds):
                return message
        raise self._failure

    async def send(
        self, data: bytes | bytearray, fds: tuple[int, ...] = (), begun: Callable[[], object] = int
    ) -> None:
        """Sends the bytes, and the fds with the first byte. Waits while the peer does not read.

        `begun` is called once the first byte is sent: until then the peer has seen nothing. Raises
        ConnectionError once the peer has gone, and the exception of `abort`. The fds stay the caller's.
        """
        view = memoryview(data)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []

        def send(done: int) -> int:
            sent = self._socket.sendmsg([view[done:]], [] if done else rights, socket.MSG_DONTWAIT)
            if not done:
                begun()
            return sent

        await self.push(len(view), send)

    async def push(self, size: int, send: Callable[[int], int]) -> None:
        """Sends `size` bytes by calls of `send`, which gets the bytes done so far and returns those it sent.

        The event loop itself calls `send` when the socket takes more. For a large picture that is much faster
        than waking a task each time. Raises what `send` raises, and the exceptions of the method `send`.
        """
        if self._failure is not None:
            raise self._failure
        done = 0
        complete: asyncio.Future[None] = self._loop.create_future()

        def go_on() -> None:
            nonlocal done
            if complete.done():  # cancelled: the writer is about to be removed
                return
            try:
                done += send(done)
            except BlockingIOError:
                return
            except Exception as error:
                complete.set_exception(error)
            else:
                if done == size:
                    complete.set_result(None)
            if complete.done():
                self._loop.remove_writer(self._socket)

        go_on()
        if not complete.done():
            self._loop.add_writer(self._socket, go_on)
        await self._wait(complete, self._loop.remove_writer)
        if done < size and self._failure is not None:
            raise self._failure

    def is_peer(self, fd: Fd) -> bool:
        """Whether `fd` is the peer's end of this connection. Its copies keep the connection open."""
        return is_other_end(fd, self._socket)

    async def hang_up(self) -> None:
        """Waits until the peer has gone, even if messages from it have not been read yet.

        Without a free fd for epoll it waits for ever.
        """
        try:
            watched = select.epoll()
        except OSError as error:
            log.warning("it will not be noticed if the front-end goes now: %s", error)
            await asyncio.Event().wait()
            return
        with watched:
            watched.register(self._socket, select.EPOLLRDHUP)
            gone = asyncio.Event()
            self._loop.add_reader(watched.fileno(), gone.set)
            try:
                await gone.wait()
            finally:
                self._loop.remove_reader(watched.fileno())

    async def outlast(self, work: Coroutine[Any, Any, None], doing: str) -> None:
        """Waits for work that the peer waits for. If the peer goes meanwhile, cancels it: FrontendGone."""
        working, leaving = asyncio.create_task(work), asyncio.create_task(self.hang_up())
        tasks = (working, leaving)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise FrontendGone(f"the front-end has gone while {doing}")
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        working.result()

    def abort(self, failure: Exception) -> None:
        """Makes all present and later calls raise `failure`."""
        if self._failure is None:
            self._failure = failure
        else:
            forget(failure)
        for waiter in self._waiters:
            _wake(waiter)

    def close(self) -> None:
        """Closes the socket, and the fds of an incomplete message; idempotent.

        All present and later calls raise ConnectionResetError.
        """
        if self._failure is not None:
            forget(self._failure)
            self._failure = None
        self.abort(ConnectionResetError("the connection was closed here"))
        self._reader.close()
        self._socket.close()

    def _read(self, size: int) -> Received:
        data, ancillary, flags, _ = self._socket.recvmsg(
            size, _ANCILLARY, socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
        )
        fds: list[Fd] = []
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind in (socket.SCM_RIGHTS, _SCM_PIDFD):
                whole = len(content) - len(content) % _FD_SIZE
                received = [Fd(number) for number in array.array("i", content[:whole])]
                if kind == socket.SCM_RIGHTS:
                    fds += received
                else:
                    close_all(received)
        if flags & socket.MSG_CTRUNC:
            self._reader.feed(b"", fds)  # the reader closes them later, with the channel
            raise MalformedMessage(f"more than {MAX_FDS} fds with one message, or no room here for them")
        return Received(data, fds)

    def _check_end(self) -> None:
        if not self._reader.between_messages:
            raise MalformedMessage("the connection ended in the middle of a message")

    async def _readable(self) -> None:
        readable = self._loop.create_future()
        self._loop.add_reader(self._socket, _wake, readable)
        await self._wait(readable, self._loop.remove_reader)

    async def _wait(self, waiter: "asyncio.Future[None]", unwatch: Callable[[socket.socket], object]) -> None:
        """Waits for the socket, or for `abort`; then `unwatch` takes the socket off the event loop."""
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            unwatch(self._socket)
            self._waiters.remove(waiter)


def _wake(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)
