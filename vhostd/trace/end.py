"""One end of a traced connection: bytes and fds, in and out.

Whoever passed the socket may share its flags, so none is changed: every call uses MSG_DONTWAIT.
"""

import array
import asyncio
import select
import socket
from collections.abc import Callable, Sequence

from vhostd.wire.fds import Fd, close_all

MAX_FDS = 253  # of one sendmsg, SCM_MAX_FD of Linux
_FD_SIZE = array.array("i").itemsize
_ANCILLARY = socket.CMSG_SPACE(MAX_FDS * _FD_SIZE)


class End:
    """A connected AF_UNIX stream socket, which it owns. One task at a time may read, and one may write."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._loop = asyncio.get_running_loop()

    def read(self, most: int) -> tuple[bytes, list[Fd], bool]:
        """What is there of the next `most` bytes, the fds that came with them, and whether all fds came.

        No bytes are the end. Raises BlockingIOError if nothing is there. The fds are the caller's.
        """
        flags = socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
        try:
            data, ancillary, told, _ = self._socket.recvmsg(most, _ANCILLARY, flags)
        except ConnectionResetError:  # the peer has left without reading all
            return b"", [], True
        fds: list[Fd] = []
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                whole = len(content) - len(content) % _FD_SIZE
                fds += (Fd(number) for number in array.array("i", content[:whole]))
        return data, fds, not told & socket.MSG_CTRUNC

    async def readable(self) -> None:
        """Waits until there is something to read, or the end."""
        await self._ready(self._loop.add_reader, self._loop.remove_reader)

    async def write(self, data: bytes | bytearray, fds: Sequence[Fd] = ()) -> None:
        """Sends the bytes, and the fds with the first; closes the fds. Waits while nobody reads.

        Raises OSError if the peer has gone, or the kernel takes no such fds.
        """
        numbers = array.array("i", [fd.fileno() for fd in fds])
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)] if fds else []
        left = memoryview(data)
        try:
            while left:
                try:
                    left = left[self._socket.sendmsg([left], rights, socket.MSG_DONTWAIT) :]
                    rights = []
                except BlockingIOError:
                    await self._ready(self._loop.add_writer, self._loop.remove_writer)
        finally:
            close_all(fds)

    @property
    def is_gone(self) -> bool:
        """Whether the peer has closed its end, and not only told that it sends no more."""
        watched = select.poll()
        watched.register(self._socket, 0)
        return bool(watched.poll(0))  # POLLHUP and POLLERR are always told

    def shut(self, how: int) -> None:
        """Tells the peer that we read no more (SHUT_RD), write no more (SHUT_WR), or both (SHUT_RDWR)."""
        try:
            self._socket.shutdown(how)
        except OSError:  # it has gone
            return

    def close(self) -> None:
        """Closes the socket."""
        self._socket.close()

    async def _ready(self, watch: Callable[..., object], unwatch: Callable[..., object]) -> None:
        ready = asyncio.Event()
        watch(self._socket, ready.set)
        try:
            await ready.wait()
        finally:
            unwatch(self._socket)
