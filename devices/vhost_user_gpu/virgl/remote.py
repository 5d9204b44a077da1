"""Remote: a renderer as this program sees it."""

import asyncio
import errno
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from vhost_user_gpu.answer import DONE, Answer, Pending
from vhost_user_gpu.virgl.arena import Arena
from vhost_user_gpu.virgl.messages import (
    ADD_REGION,
    ARENA,
    MOST_PACKET,
    AddRegion,
    Exported,
    Head,
    Hello,
    Replies,
    Result,
)
from vhostd import Fd, Layout, Row
from vhostd.wire.packets import receive_packet, send_packet

log = logging.getLogger(__name__)

# Requests that are not executed yet, before the guest's next ones wait in their ring, also those in 2D.
# QEMU's rings have 256 entries: there it is the arena that fills first.
MOST_WAITING = 512
SERIALS = 1 << 32  # that the renderer can tell apart
PATIENCE = 60.0  # seconds in which a renderer that has work must say something
STOP_PATIENCE = 10.0  # seconds in which it must do all that there is when a ring stops; the guest may wait

Then = Callable[[int], Answer]  # from an errno, or 0, to the guest's answer
Take = Callable[[Exported, Fd], None]  # owns the fd


class Fence(NamedTuple):
    """When a request is complete: in which order (`Head.fence`), and of which context's ring."""

    order: int = 0
    ctx_id: int = 0
    ring_idx: int = 0


class Remote:
    """Sends requests on a connected socket, which it owns, and tells whoever waits for their results.

    A renderer that ends, or says nothing although it has work, is lost: all that waits has an errno then, and
    so has what is asked later. `lost` is called once, with the reason.
    """

    def __init__(self, sock: socket.socket, lost: Callable[[str], None], *, greeted: bool = False) -> None:
        sock.setblocking(False)
        self.is_lost = False
        self.is_used = False  # a guest has asked something of it
        self._socket = sock
        self._tell_lost = lost
        self._loop: asyncio.AbstractEventLoop | None = None
        self._serial = 0
        self._executed = 0
        self._greeted = greeted
        self._waiting: dict[int, tuple[Pending, Then]] = {}
        self._takers: dict[int, Take] = {}  # whoever waits for a dmabuf, by serials
        self._fences: dict[int, None] = {}  # serials that are complete in the order of all
        self._unsent: deque[tuple[bytes, list[Fd]]] = deque()
        self._eased = asyncio.Event()
        self._heard = 0.0  # when it said something last
        self._watch: asyncio.TimerHandle | None = None
        self._arena = Arena()
        self._send_region(ARENA, self._arena.fd)

    # --- Requests ---------------------------------------------------------------------------------------

    @property
    def is_congested(self) -> bool:
        """Whether the next request should wait until the renderer has `eased`."""
        waiting = self._serial - self._executed
        return not self.is_lost and (waiting >= MOST_WAITING or not self._arena.has_room)

    async def eased(self) -> None:
        """Waits until requests can be sent again."""
        while self.is_congested:
            self._eased.clear()
            await self._eased.wait()

    async def settle(self) -> None:
        """Waits until nothing is under way. A renderer that takes too long for that is lost: a ring stops."""
        try:
            async with asyncio.timeout(STOP_PATIENCE):
                while self._waiting:
                    self._eased.clear()
                    await self._eased.wait()
        except TimeoutError:
            self._lose(f"it has kept a ring from stopping for {STOP_PATIENCE:.0f} s")

    def ask(
        self,
        row: Row[Any, Any],
        payload: Layout,
        then: Then,
        *,
        fence: Fence = Fence(),  # noqa: B008
        fds: Sequence[int] = (),
        take: Take | None = None,
    ) -> Pending:
        """Sends a request; the result is what `then` makes of its errno, or 0.

        What the renderer exports for it is given to `take` before.
        """
        pending = Pending()
        if self.is_lost:
            pending.finish(then(errno.EIO))
            return pending
        self.is_used = True
        self._serial += 1
        self._waiting[self._serial] = (pending, then)
        if fence.order == Head.GLOBAL:
            self._fences[self._serial] = None
        if take is not None:
            self._takers[self._serial] = take
        head = Head(row.request, self._serial % SERIALS, *fence).pack()
        self._send(head + payload.pack(), fds)
        self._begin_watch()
        return pending

    def tell(self, row: Row[Any, Any], payload: Layout, *, fds: Sequence[int] = ()) -> None:
        """Sends a request whose result does not matter."""
        self.ask(row, payload, lambda _: DONE, fds=fds)

    @property
    def arena(self) -> Arena:
        """Where long requests are placed, with `next_serial`."""
        return self._arena

    @property
    def next_serial(self) -> int:
        """The serial of the next request."""
        return self._serial + 1

    def after_fences(self, answer: Answer) -> Pending:
        """The answer, once all fences have signalled that are in the order of all."""
        pending = Pending()
        if not self._fences:
            pending.finish(answer)
        else:
            last, _ = self._waiting[next(reversed(self._fences))]
            last.then(lambda _: pending.finish(answer))
        return pending

    def add_region(self, number: int, fd: int, size: int) -> None:
        """Shares memory by its file."""
        self.tell(ADD_REGION, AddRegion(number, 0, size), fds=(fd,))

    def start(self) -> None:
        """Begins to listen; the event loop runs."""
        if self._loop is None and not self.is_lost:
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(self._socket, self._receive)
            if self._unsent:
                self._loop.add_writer(self._socket, self._send_rest)

    def close(self) -> None:
        """Ends the connection, and with it the renderer; idempotent."""
        self._lose(None)

    # --- The socket -------------------------------------------------------------------------------------

    def _send_region(self, number: int, fd: Fd) -> None:
        head = Head(ADD_REGION.request, 0, 0, 0, 0).pack()
        size = os.fstat(fd.fileno()).st_size
        self._send(head + AddRegion(number, 0, size).pack(), (fd.fileno(),))

    def _send(self, data: bytes, fds: Sequence[int]) -> None:
        try:
            if self._unsent or not self._try_to_send(data, fds):
                self._unsent.append((data, [Fd(os.dup(fd)) for fd in fds]))
                if self._loop is not None and len(self._unsent) == 1:
                    self._loop.add_writer(self._socket, self._send_rest)
        except OSError as error:  # there is nobody, or there are no fds left
            if self._loop is not None:  # not in the middle of a method of the card
                self._loop.call_soon(self._lose, error.strerror)

    def _try_to_send(self, data: bytes, fds: Sequence[int]) -> bool:
        """Sends a packet; False if there is no room for it now. Raises OSError."""
        try:
            send_packet(self._socket, data, fds, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        return True

    def _send_rest(self) -> None:
        try:
            while self._unsent and self._try_to_send(
                self._unsent[0][0], [fd.fileno() for fd in self._unsent[0][1]]
            ):
                for fd in self._unsent.popleft()[1]:
                    fd.close()
        except OSError as error:
            self._lose(error.strerror)
            return
        if not self._unsent and self._loop is not None:
            self._loop.remove_writer(self._socket)

    def _receive(self) -> None:
        try:
            data, fds = receive_packet(self._socket, MOST_PACKET)
        except BlockingIOError:
            return
        except OSError as error:
            self._lose(error.strerror)
            return
        self._heard = time.monotonic()
        if not data:
            self._lose("it has ended")
        elif fds:
            self._take_dmabuf(data, [Fd(fd) for fd in fds])
        elif self._greeted:
            self._take_replies(data)
        else:
            self._take_hello(data)

    def _take_hello(self, data: bytes) -> None:
        self._greeted = True
        if not Hello.unpack(data[: Hello.SIZE]).ready:
            self._lose(data[Hello.SIZE :].decode(errors="replace"))

    def _take_replies(self, data: bytes) -> None:
        self._executed = self._whole(Replies.unpack(data[: Replies.SIZE]).executed)
        self._arena.free(self._executed)
        for at in range(Replies.SIZE, len(data), Result.SIZE):
            result = Result.unpack(data[at : at + Result.SIZE])
            self._finish(self._whole(result.serial), result.error)
        self._eased.set()

    def _whole(self, serial: int) -> int:
        """The serial of which the renderer has the lower bits. In weeks a guest uses all of these."""
        return self._serial - (self._serial - serial) % SERIALS

    def _take_dmabuf(self, data: bytes, fds: list[Fd]) -> None:
        """Nobody may have asked for it."""
        if len(data) == Exported.SIZE:
            exported = Exported.unpack(data)
            if take := self._takers.pop(self._whole(exported.serial), None):
                take(exported, fds.pop())
        for fd in fds:
            fd.close()

    def _finish(self, serial: int, error: int) -> None:
        """The request is complete."""
        self._takers.pop(serial, None)
        waiting = self._waiting.pop(serial, None)
        self._fences.pop(serial, None)
        if waiting is not None:
            pending, then = waiting
            pending.finish(then(error))

    # --- The end ----------------------------------------------------------------------------------------

    def _begin_watch(self) -> None:
        """Looks from now on whether the renderer does its work."""
        if self._loop is not None and self._watch is None:
            self._heard = time.monotonic()
            self._watch = self._loop.call_later(PATIENCE, self._look)

    def _look(self) -> None:
        self._watch = None
        if not self._waiting or self._loop is None:
            return
        if (silence := time.monotonic() - self._heard) >= PATIENCE:
            self._lose(f"it has said nothing for {silence:.0f} s")
        else:
            self._watch = self._loop.call_later(PATIENCE - silence, self._look)

    def _lose(self, why: str | None) -> None:
        if self.is_lost:
            return
        self.is_lost = True
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
        if self._watch is not None:
            self._watch.cancel()
        self._socket.close()
        for _, fds in self._unsent:
            for fd in fds:
                fd.close()
        self._unsent.clear()
        for serial in list(self._waiting):
            self._finish(serial, errno.EIO)
        self._fences.clear()
        self._arena.close()
        self._eased.set()
        if why is not None:
            self._tell_lost(why)
