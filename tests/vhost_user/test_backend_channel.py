"""Requests to a front-end that hears them, does not read, or is gone."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.conftest import Run
from vhostd.errors import RefusedRequest
from vhostd.vhost_user.backend_channel import BackendChannel
from vhostd.vhost_user.messages import BACK_END, CONFIG_CHANGE_MSG
from vhostd.wire.channel import Channel
from vhostd.wire.fds import Fd
from vhostd.wire.rows import Empty


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[BackendChannel, Channel]]:
    """A back-end's channel for requests, and the front-end's end of it."""
    ours, theirs = socket.socketpair()
    backend = BackendChannel(Fd(ours.detach()))
    frontend = Channel(theirs, BACK_END)
    try:
        yield backend, frontend
    finally:
        backend.close()
        frontend.close()


async def request(backend: BackendChannel) -> "asyncio.Task[None]":
    """A request that is on its way."""
    task = asyncio.create_task(backend.request(CONFIG_CHANGE_MSG, Empty()))
    await asyncio.sleep(0)
    return task


def test_a_request_ends_when_it_is_sent(run_async: Run) -> None:
    async def main() -> None:
        async with connected() as (backend, frontend):
            await backend.request(CONFIG_CHANGE_MSG, Empty())
            message = await frontend.receive()
            assert message is not None
            assert (message.request, message.needs_reply) == (2, False)

    run_async(main)


def test_a_front_end_that_has_gone_is_a_connection_error(run_async: Run) -> None:
    async def main() -> None:
        async with connected() as (backend, frontend):
            frontend.close()
            with pytest.raises(ConnectionError):
                await backend.request(CONFIG_CHANGE_MSG, Empty())

    run_async(main)


def test_a_slow_front_end_blocks_nobody_else(run_async: Run) -> None:
    """Its buffer is full: the request waits, the event loop does not."""

    async def main() -> None:
        async with connected() as (backend, frontend):

            async def flood() -> None:
                while True:
                    await backend.request(CONFIG_CHANGE_MSG, Empty())

            task = asyncio.create_task(flood())
            for _ in range(3):
                await asyncio.sleep(0)
            assert not task.done()
            while await frontend.receive() is None:
                pass
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    run_async(main)


def test_a_request_that_was_given_up_gives_its_turn_up(run_async: Run) -> None:
    async def main() -> None:
        async with connected() as (backend, frontend):
            first, second = await request(backend), await request(backend)
            first.cancel()
            await second
            assert await frontend.receive() is not None

    run_async(main)


def some_fd(kind: str) -> Fd:
    if kind == "file":
        return Fd(os.open("/dev/null", os.O_RDWR))
    if kind == "udp":
        return Fd(socket.socket(socket.AF_INET, socket.SOCK_DGRAM).detach())
    if kind == "seqpacket":
        ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
        theirs.close()
        return Fd(ours.detach())
    return Fd(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).detach())


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("file", "no socket"),
        ("udp", "socket of .*SOCK_DGRAM"),
        ("seqpacket", "socket of .*SOCK_SEQPACKET"),
        ("unconnected", "leads nowhere"),
    ],
)
def test_an_fd_of_another_kind_is_refused_and_stays_the_caller_s(kind: str, why: str) -> None:
    with some_fd(kind) as fd:
        with pytest.raises(RefusedRequest, match=f"SET_BACKEND_REQ_FD with .*{why}"):
            BackendChannel(fd)
        assert fd


def test_close_may_be_called_again(run_async: Run) -> None:
    async def main() -> None:
        async with connected() as (backend, frontend):
            backend.close()
            backend.close()
            assert await frontend.receive() is None

    run_async(main)
