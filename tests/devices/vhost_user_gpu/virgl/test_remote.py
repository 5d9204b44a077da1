"""A renderer as the program sees it, with the test in the renderer's place."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.conftest import Run
from vhost_user_gpu.answer import DONE, Answer
from vhost_user_gpu.commands import Response
from vhost_user_gpu.virgl import remote
from vhost_user_gpu.virgl.messages import (
    DESTROY_CONTEXT,
    EXPORT,
    MOST_PACKET,
    Context,
    Exported,
    Head,
    Hello,
    Replies,
    Resource,
    Result,
)
from vhost_user_gpu.virgl.remote import MOST_WAITING, Fence, Remote
from vhostd import Fd
from vhostd.wire.packets import receive_packet, send_packet

GLOBAL = Fence(Head.GLOBAL)


class Renderer:
    """The other end of a Remote."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.lost: list[str] = []

    async def takes(self) -> int:
        """The serial of the next request."""
        while True:
            try:
                data, fds = receive_packet(self.socket, MOST_PACKET, socket.MSG_DONTWAIT)
            except BlockingIOError:
                await asyncio.sleep(0)
                continue
            for fd in fds:
                os.close(fd)
            return Head.unpack(data[: Head.SIZE]).serial

    def exports(self, serial: int, fd: Fd) -> None:
        """Sends a dmabuf."""
        exported = Exported(serial, 800, 0, 0, 0, 0, 0)
        send_packet(self.socket, exported.pack(), (fd.fileno(),))

    def replies(self, executed: int, *results: tuple[int, int]) -> None:
        """Says how far it has come."""
        self.socket.send(Replies(executed).pack() + b"".join(Result(*each).pack() for each in results))


@asynccontextmanager
async def connected(*, greeted: bool = True) -> AsyncIterator[tuple[Remote, Renderer]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    renderer = Renderer(theirs)
    seen = Remote(ours, renderer.lost.append, greeted=greeted)
    seen.start()
    with theirs:
        assert await renderer.takes() == 0  # the arena
        try:
            yield seen, renderer
        finally:
            seen.close()


def asked(seen: Remote, fence: Fence = Fence()) -> list[int | Answer]:  # noqa: B008
    """A request; what it is told: its errno, then its answer."""
    told: list[int | Answer] = []

    def then(error: int) -> Answer:
        told.append(error)
        return DONE

    seen.ask(DESTROY_CONTEXT, Context(1), then, fence=fence).then(told.append)
    return told


def memfd() -> Fd:
    return Fd(os.memfd_create("dmabuf", os.MFD_CLOEXEC))


async def until(*told: list[int | Answer]) -> None:
    while not all(told):
        await asyncio.sleep(0)


def test_whoever_asks_is_told_the_result(run_async: Run) -> None:
    async def main() -> None:
        async with connected() as (seen, renderer):
            first, second = asked(seen), asked(seen)
            assert [await renderer.takes(), await renderer.takes()] == [1, 2]
            renderer.replies(2, (2, 0), (1, 22))
            await until(first, second)
            assert (first, second) == ([22, DONE], [0, DONE])

    run_async(main)


def test_an_answer_waits_for_the_fences_before_it(run_async: Run) -> None:
    async def main() -> None:
        async with connected() as (seen, renderer):
            error = (Response.ERR_UNSPEC, b"")
            order: list[object] = []
            seen.after_fences(error).then(order.append)
            assert order == [error]
            asked(seen, GLOBAL)
            last = asked(seen, GLOBAL)
            asked(seen)
            seen.after_fences(error).then(order.append)
            renderer.replies(3, (3, 0), (1, 0))
            renderer.replies(3, (2, 0))
            assert order == [error]
            await until(last)
            assert order == [error, error]

    run_async(main)


def test_serials_never_end(run_async: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr(remote, "SERIALS", 4)
        async with connected() as (seen, renderer):
            for serials in ([1, 2, 3], [0, 1, 2]):
                told = [asked(seen, GLOBAL) for _ in serials]
                assert [await renderer.takes() for _ in told] == serials
                renderer.replies(serials[-1], (serials[1], 0))
                await until(told[1])
                assert told == [[], [0, DONE], []]
                renderer.replies(serials[-1], (serials[0], 0), (serials[2], 0))
                await until(*told)

    run_async(main)


def test_a_renderer_that_ends_answers_all(run_async: Run) -> None:
    async def main() -> None:
        async with connected() as (seen, renderer):
            waiting = [asked(seen), asked(seen, GLOBAL)]
            renderer.socket.close()
            await until(*waiting)
            assert waiting == [[5, DONE], [5, DONE]]
            assert seen.is_lost
            assert asked(seen) == [5, DONE]
            assert len(renderer.lost) == 1

    run_async(main)


def test_whoever_asks_for_a_dmabuf_gets_it_before_the_result(run_async: Run) -> None:
    async def main() -> None:
        async with connected() as (seen, renderer):
            told: list[object] = []

            def take(exported: Exported, fd: Fd) -> None:
                told.extend((exported.stride, os.fstat(fd.fileno()).st_ino))
                fd.close()

            def then(error: int) -> Answer:
                told.append(error)
                return DONE

            seen.ask(EXPORT, Resource(1), then, take=take)
            with memfd() as fd:
                renderer.exports(1, fd)
                renderer.replies(1, (1, 0))
                wanted = [800, os.fstat(fd.fileno()).st_ino, 0]
            while told != wanted:
                await asyncio.sleep(0)

    run_async(main)


def test_a_dmabuf_that_nobody_asked_for_is_closed(run_async: Run) -> None:
    async def main() -> None:
        async with connected() as (seen, renderer):
            before = len(os.listdir("/proc/self/fd"))
            with memfd() as fd:
                for serial in (0, 1, 7):
                    renderer.exports(serial, fd)
                send_packet(renderer.socket, b"?", (fd.fileno(),))
            told = asked(seen)
            renderer.replies(1, (1, 0))
            await until(told)
            assert len(os.listdir("/proc/self/fd")) == before

    run_async(main)


def test_a_renderer_that_cannot_start_says_why(run_async: Run) -> None:
    async def main() -> None:
        async with connected(greeted=False) as (seen, renderer):
            waiting = asked(seen)
            renderer.socket.send(Hello(0, 0, 0, b"", b"").pack() + b"no GL")
            await until(waiting)
            assert renderer.lost == ["no GL"]

    run_async(main)


def test_a_renderer_that_hangs_is_lost(run_async: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr(remote, "PATIENCE", 0.01)
        async with connected() as (seen, renderer):
            waiting = asked(seen)
            await until(waiting)
            assert waiting == [5, DONE]
            assert renderer.lost[0].startswith("it has said nothing for")

    run_async(main)


def test_a_ring_that_stops_waits_for_what_is_under_way(run_async: Run) -> None:
    async def main() -> None:
        async with connected() as (seen, renderer):
            await seen.settle()
            waiting = asked(seen)
            settled = asyncio.ensure_future(seen.settle())
            await renderer.takes()
            assert not settled.done()
            renderer.replies(1, (1, 0))
            await settled
            assert waiting == [0, DONE]

    run_async(main)


def test_a_renderer_that_keeps_a_ring_from_stopping_is_lost(
    run_async: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        monkeypatch.setattr(remote, "STOP_PATIENCE", 0.01)
        async with connected() as (seen, renderer):
            waiting = asked(seen)
            await seen.settle()
            assert waiting == [5, DONE]
            assert renderer.lost[0].startswith("it has kept a ring from stopping")

    run_async(main)


def test_more_than_a_socket_takes_is_sent_later(run_async: Run) -> None:
    async def main() -> None:
        async with connected() as (seen, renderer):
            assert not seen.is_congested
            count = 4000
            told = [asked(seen) for _ in range(count)]
            assert seen.is_congested
            eased = asyncio.ensure_future(seen.eased())
            assert [await renderer.takes() for _ in range(count)] == list(range(1, count + 1))
            assert not eased.done()
            renderer.replies(count - MOST_WAITING + 1)
            await eased
            renderer.replies(count, *((serial, 0) for serial in range(1, count + 1)))
            await until(*told)

    run_async(main)


def test_closing_tells_nobody_of_a_loss(run_async: Run) -> None:
    async def main() -> None:
        async with connected() as (seen, renderer):
            waiting = asked(seen)
            seen.close()
            seen.close()
            assert waiting == [5, DONE]
            assert renderer.lost == []

    run_async(main)
