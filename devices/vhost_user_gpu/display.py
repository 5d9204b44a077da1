"""The vhost-user-gpu socket: one task asks for the monitors, one sends pictures, one takes replies.

Pictures are not queued: the painter looks at the scan-outs when the socket takes more bytes. So a slow
front-end misses frames, and the guest never waits for it.
"""

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import vhostd.vhost_user.gpu_messages as wire
from vhost_user_gpu.answer import Pending
from vhost_user_gpu.exporter import Exporter, dmabuf_message
from vhost_user_gpu.outputs import Outputs
from vhost_user_gpu.pixels import PIXEL
from vhost_user_gpu.rect import Rect
from vhost_user_gpu.scanout import Cursor, Framebuffer, Scanout
from vhostd import U64, Caller, Channel, Empty, FrontendError, Layout, Reply, Row

R = TypeVar("R", bound=Layout)

log = logging.getLogger(__name__)

FEATURES = 1 << wire.DisplayFeature.EDID | 1 << wire.DisplayFeature.DMABUF2
PIECE = 1 << 18  # bytes that are converted at a time; they stay in the processor's cache until they are sent


class Display:
    """Shows scan-outs on a connected socket, which it owns, until the front-end closes it, or `close`.

    `answered` is called whenever the front-end has described its monitors. With an `exporter`, scan-outs are
    shown as dmabufs where possible.
    """

    def __init__(
        self,
        sock: socket.socket,
        scanouts: Sequence[Scanout],
        outputs: Outputs,
        answered: Callable[[], None],
        exporter: Exporter | None = None,
    ) -> None:
        self._socket = sock
        self._channel = Channel(sock, wire.DISPLAY, replies=True)
        self._caller = Caller(self._channel)
        self._loop = asyncio.get_running_loop()
        self._outputs = outputs
        self._answered = answered
        self._exporter = exporter
        self._features = 0
        self._agreed = asyncio.Event()  # on the features
        self._dirty: dict[Scanout, None] = {}  # the scan-outs with news, in the order of their turns
        self._is_dirty = asyncio.Event()
        self._question_due = asyncio.Event()
        self._next_waiters: list[asyncio.Future[None]] = []  # for the answer to the next question
        self._sent_waiters: list[asyncio.Future[None]] = []  # for the answer to the question that was sent
        self._children: list[asyncio.Task[None]] = []
        self._task = self._loop.create_task(self._run(), name="display")
        for scanout in scanouts:
            scanout.is_copied = True
            scanout.repaint()
            if scanout.has_news:
                self.update(scanout)
        self._question_due.set()

    @property
    def open(self) -> bool:
        """Whether the front-end is still there."""
        return not self._task.done() and not self._task.cancelling()

    def update(self, scanout: Scanout) -> None:
        """Sends the news of a scan-out, as soon as the front-end can take it."""
        self._dirty[scanout] = None
        self._is_dirty.set()

    def refresh(self) -> "asyncio.Future[None]":
        """Asks for the monitors again; the result is done when `outputs` has the answer or none will come."""
        answered: asyncio.Future[None] = self._loop.create_future()
        self._next_waiters = [other for other in self._next_waiters if not other.done()] + [answered]
        self._question_due.set()
        if not self.open:
            self.give_up()
        return answered

    def give_up(self) -> None:
        """Ends all waits for an answer."""
        _finish(self._next_waiters)
        _finish(self._sent_waiters)

    def close(self) -> None:
        """Ends the tasks; idempotent. From now on all news of the scan-outs is left to the next Display."""
        for task in (*self._children, self._task):
            task.cancel()
        self.give_up()

    async def _run(self) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                work = (self._caller.listen(), self._ask_about_monitors(), self._paint())
                self._children = [tasks.create_task(part) for part in work]
        except* ConnectionError as gone:
            log.info("the front-end shows nothing any more: %s", gone.exceptions[0])
        except* FrontendError as error:
            log.error("closing the gpu socket: %s", error.exceptions[0])
        except* Exception:
            log.exception("closing the gpu socket after a fault of this program")
        finally:
            self._channel.close()
            self.give_up()

    # --- Questions --------------------------------------------------------------------------------------

    async def _ask_about_monitors(self) -> None:
        offered = (await self._ask(wire.GET_PROTOCOL_FEATURES, Empty())).value
        self._features = offered & FEATURES
        await self._caller.tell(wire.SET_PROTOCOL_FEATURES, U64(self._features))
        self._agreed.set()
        while True:
            await self._question_due.wait()
            self._question_due.clear()
            # A caller of `refresh` from now on needs a newer answer than this one.
            self._sent_waiters, self._next_waiters = self._next_waiters, []
            await self._ask_once()
            _finish(self._sent_waiters)
            self._answered()

    async def _ask_once(self) -> None:
        info: wire.DisplayInfo = await self._ask(wire.GET_DISPLAY_INFO, Empty())
        self._outputs.set_modes(info.modes)
        if self._features >> wire.DisplayFeature.EDID & 1:
            for number in self._outputs.enabled:
                reply: wire.Edid = await self._ask(wire.GET_EDID, wire.EdidRequest(number))
                self._outputs.set_edid(number, reply.edid[: reply.size])

    async def _ask(self, row: Row[Any, R], payload: Layout) -> R:
        """Sends a request and returns the payload of its reply."""
        reply: Reply[R] = await (await self._caller.ask(row, payload))
        return reply.payload

    # --- Pictures ---------------------------------------------------------------------------------------

    async def _paint(self) -> None:
        if self._exporter is not None:  # how dmabufs are described is a feature
            await self._agreed.wait()
        while True:
            await self._is_dirty.wait()
            self._is_dirty.clear()
            waiting, self._dirty = self._dirty, {}
            for scanout in waiting:
                await self._show_cursor(scanout.number, scanout.cursor)
                shown = await self._show_picture(scanout)
                if shown is not None:
                    await shown

    async def _show_cursor(self, number: int, cursor: Cursor) -> None:
        place = (number, cursor.x, cursor.y)
        moved, reshaped = cursor.take_news()
        if reshaped:
            shape = wire.CursorUpdate(*place, cursor.hot_x, cursor.hot_y, cursor.shape)
            await self._caller.tell(wire.CURSOR_UPDATE, shape)
        elif moved:
            row = wire.CURSOR_POS if cursor.visible else wire.CURSOR_POS_HIDE
            await self._caller.tell(row, wire.CursorPos(*place))

    async def _show_picture(self, scanout: Scanout) -> "asyncio.Future[Any] | None":
        """Sends the news of a picture; returns a future if the front-end will say when it is visible."""
        if scanout.replaced:
            if self._is_early(scanout, _sharing(scanout)):
                return None
            scanout.replaced = False
            await self._announce_picture(scanout)
        # If the guest has replaced it again meanwhile, the next round begins with that.
        if scanout.framebuffer is None or scanout.replaced or not scanout.damage:
            return None
        if scanout.is_copied and self._is_early(scanout, scanout.framebuffer.resource.refresh()):
            return None
        damage = scanout.take_damage()
        update = wire.Update(scanout.number, *damage)
        if not scanout.is_copied:
            return await self._caller.ask(wire.DMABUF_UPDATE, update)
        size = damage.width * damage.height * PIXEL
        head = wire.DISPLAY.encode(wire.UPDATE.request, update, following=size)
        async with self._caller.turn:
            await self._send_pixels(head, scanout.framebuffer, damage.moved(scanout.rect.x, scanout.rect.y))
        return None

    def _is_early(self, scanout: Scanout, awaited: Pending | None) -> bool:
        """Whether a renderer has to answer first: the scan-out has another turn then."""
        if awaited is not None:
            awaited.then(lambda _: self.update(scanout))
        return awaited is not None

    async def _announce_picture(self, scanout: Scanout) -> None:
        """Tells the front-end what a scan-out shows now: a dmabuf, pictures of another size, or nothing."""
        dmabuf = None
        if self._exporter is not None:
            dmabuf = self._exporter.export(scanout, with_modifier=self._has_modifiers)
        if dmabuf is not None:
            scanout.resized = scanout.is_copied = False
            with dmabuf.fd as fd:
                message = dmabuf_message(scanout, dmabuf, with_modifier=self._has_modifiers)
                await self._caller.tell(*message, (fd,))
            return
        if not scanout.is_copied:
            scanout.is_copied = True
            await self._caller.tell(*dmabuf_message(scanout, None, with_modifier=self._has_modifiers))
            scanout.resize()
        if scanout.resized:
            scanout.resized = False
            size = wire.Scanout(scanout.number, scanout.rect.width, scanout.rect.height)
            await self._caller.tell(wire.SCANOUT, size)

    @property
    def _has_modifiers(self) -> bool:
        return bool(self._features >> wire.DisplayFeature.DMABUF2 & 1)

    async def _send_pixels(self, head: bytes, framebuffer: Framebuffer, rect: Rect) -> None:
        """Sends a rectangle's pixels; without a copy if the framebuffer already has the wire's layout."""
        if not framebuffer.is_sendable(rect):
            await self._channel.send(head)
            for band in rect.bands(PIECE // (rect.width * PIXEL)):
                await self._channel.send(framebuffer.copy(band))
            return
        resource, start = framebuffer.resource, framebuffer.start(rect)
        size = rect.width * rect.height * PIXEL

        def send(done: int) -> int:
            if done < len(head):  # sent together with the pixels: the front-end wakes up once
                return resource.send(self._socket, start, size, head[done:])
            done -= len(head)
            return resource.send(self._socket, start + done, size - done)

        await self._channel.push(len(head) + size, send)


def _sharing(scanout: Scanout) -> Pending | None:
    return None if scanout.framebuffer is None else scanout.framebuffer.resource.sharing


def _finish(waiting: "list[asyncio.Future[None]]") -> None:
    for answered in waiting:
        if not answered.done():
            answered.set_result(None)
    waiting.clear()
