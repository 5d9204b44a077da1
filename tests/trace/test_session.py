"""Sockets that the front-end passes: the back-end gets another one, and what is said there is seen."""

import asyncio
import os
import socket

import pytest

from tests.conftest import Run
from tests.trace.ends import put, take, traced
from vhostd.trace.entries import Line, Side
from vhostd.vhost_user import gpu_messages as display
from vhostd.vhost_user.messages import (
    BACK_END,
    CONFIG_CHANGE_MSG,
    FRONT_END,
    GPU_SET_SOCKET,
    SET_BACKEND_REQ_FD,
    SHARED_OBJECT_LOOKUP,
    SharedObject,
)
from vhostd.wire.fds import close_all
from vhostd.wire.framing import HEADER, REPLY, VERSION, Dialect
from vhostd.wire.rows import U64, Empty, Row

LINES: list[tuple[Row[Empty, None], Line, Dialect]] = [
    (SET_BACKEND_REQ_FD, Line.BACKEND, BACK_END),
    (GPU_SET_SOCKET, Line.DISPLAY, display.DISPLAY),
]


@pytest.mark.parametrize(("row", "line", "dialect"), LINES, ids=["back-end's", "display"])
def test_a_passed_socket_is_traced(
    run_async: Run, row: Row[Empty, None], line: Line, dialect: Dialect
) -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        async with traced() as both:
            await put(both.front, FRONT_END.encode(row.request, Empty()), theirs.fileno())
            theirs.close()
            _, (fd,) = await take(both.back, HEADER.size)
            with ours, socket.socket(fileno=fd.take()) as passed:
                request = dialect.encode(2, U64(3))
                await put(passed, request)
                assert await take(ours, len(request)) == (request, [])
                reply = dialect.encode(2, U64(0), reply=True)
                await put(ours, reply)
                assert await take(passed, len(reply)) == (reply, [])
        assert [(each.line, each.sender, each.size) for each in both.messages[1:]] == [
            (line, Side.BACK_END, 8),
            (line, Side.FRONT_END, 8),
        ]

    run_async(main)


def test_fds_go_through_a_passed_socket(run_async: Run) -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        eventfd = os.eventfd(0)
        async with traced() as both:
            await put(both.front, FRONT_END.encode(SET_BACKEND_REQ_FD.request, Empty()), theirs.fileno())
            theirs.close()
            _, (fd,) = await take(both.back, HEADER.size)
            with ours, socket.socket(fileno=fd.take()) as passed:
                request = BACK_END.encode(SHARED_OBJECT_LOOKUP.request, SharedObject(b"u"))
                await put(passed, request)
                await take(ours, len(request))
                reply = BACK_END.encode(SHARED_OBJECT_LOOKUP.request, U64(0), reply=True)
                await put(ours, reply, eventfd)
                _, (fd,) = await take(passed, len(reply))
                os.eventfd_write(eventfd, 7)
                assert os.eventfd_read(fd.fileno()) == 7
                fd.close()
        assert [each.kind for each in both.messages[-1].fds] == ["eventfd"]
        os.close(eventfd)

    run_async(main)


def test_the_end_of_a_passed_socket_is_passed_on(run_async: Run) -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        async with traced() as both:
            await put(both.front, FRONT_END.encode(GPU_SET_SOCKET.request, Empty()), theirs.fileno())
            theirs.close()
            _, (fd,) = await take(both.back, HEADER.size)
            with ours, socket.socket(fileno=fd.take()) as passed:
                ours.close()
                assert await take(passed, 1) == (b"", [])
        assert both.notes == ["the display socket has ended"]

    run_async(main)


def test_passed_sockets_end_with_the_connection(run_async: Run) -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        async with traced() as both:
            await put(both.front, FRONT_END.encode(SET_BACKEND_REQ_FD.request, Empty()), theirs.fileno())
            theirs.close()
            _, (fd,) = await take(both.back, HEADER.size)
        with ours, socket.socket(fileno=fd.take()) as passed:
            assert await take(passed, 1) == (b"", [])
            assert await take(ours, 1) == (b"", [])

    run_async(main)


def test_what_is_no_socket_is_passed_on_as_it_is(run_async: Run) -> None:
    async def main() -> None:
        reading, writing = os.pipe()
        async with traced() as both:
            request = FRONT_END.encode(SET_BACKEND_REQ_FD.request, Empty())
            await put(both.front, request, reading)
            await put(both.front, request, reading, writing)
            for count in (1, 2):
                _, fds = await take(both.back, HEADER.size)
                assert len(fds) == count
                assert os.path.sameopenfile(fds[0].fileno(), reading)
                close_all(fds)
        os.close(reading)
        os.close(writing)

    run_async(main)


def test_a_socket_that_comes_in_pieces_is_traced(run_async: Run) -> None:
    """The fd comes with the first byte, and nobody knows yet what for."""

    async def main() -> None:
        ours, theirs = socket.socketpair()
        async with traced() as both:
            request = FRONT_END.encode(SET_BACKEND_REQ_FD.request, Empty())
            await put(both.front, request[:1], theirs.fileno())
            theirs.close()
            await asyncio.sleep(0)
            await put(both.front, request[1:])
            _, (fd,) = await take(both.back, HEADER.size)
            with ours, socket.socket(fileno=fd.take()) as passed:
                await put(passed, HEADER.pack(CONFIG_CHANGE_MSG.request, VERSION, 0))
                await take(ours, HEADER.size)
        assert both.messages[-1].line is Line.BACKEND

    run_async(main)


def test_a_frame_goes_through_the_display_s_socket(run_async: Run) -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        pixels = bytes(range(256)) * 16384
        async with traced() as both:
            await put(both.front, FRONT_END.encode(GPU_SET_SOCKET.request, Empty()), theirs.fileno())
            theirs.close()
            _, (fd,) = await take(both.back, HEADER.size)
            with ours, socket.socket(fileno=fd.take()) as passed:
                update = display.Update(0, 0, 0, 1024, 1024)
                head = display.DISPLAY.encode(display.UPDATE.request, update, following=len(pixels))
                sending = asyncio.create_task(put(passed, head + pixels))
                assert await take(ours, len(head + pixels)) == (head + pixels, [])
                await sending
        shown = both.messages[-1]
        assert (shown.size, shown.payload) == (display.Update.SIZE + len(pixels), update.pack())
        assert not shown.flags & REPLY

    run_async(main)
