"""Requests to a front-end that hears them, answers, says no, does not read, or is gone."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.conftest import Run
from tests.sessions import Echo, backend_requests, negotiated
from vhostd.errors import MalformedMessage, RefusedRequest, UnknownRequest
from vhostd.vhost_user.dispatch import Agreed
from vhostd.vhost_user.link import FrontendLink
from vhostd.vhost_user.messages import (
    BACK_END,
    CONFIG_CHANGE_MSG,
    GET_QUEUE_NUM,
    SHARED_OBJECT_ADD,
    SHARED_OBJECT_LOOKUP,
    SHARED_OBJECT_REMOVE,
    ProtocolFeature,
    SharedObject,
)
from vhostd.virtio.link import Link
from vhostd.virtio.vocabulary import mask
from vhostd.wire.channel import Channel
from vhostd.wire.fds import Fd
from vhostd.wire.framing import Message
from vhostd.wire.rows import U64, Empty, Payload, Row

PATIENCE = 20.0  # seconds for what takes none: it only bounds how long a fault is waited for
UUID = SharedObject(b"sixteen bytes...")
EVERYTHING = mask(ProtocolFeature.CONFIG, ProtocolFeature.REPLY_ACK, ProtocolFeature.SHARED_OBJECT)


class Peer:
    """The front-end's end of the socket."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel

    async def hear(self, row: Row[Any, Any]) -> Message:
        """The next request, which must be of this row."""
        message = await self.channel.receive()
        assert message is not None
        assert message.request == row.request
        return message

    async def reply(self, row: Row[Any, Any], payload: Payload, *fds: int) -> None:
        await self.channel.send(BACK_END.encode(row.request, payload, reply=True), fds)


@asynccontextmanager
async def linked(
    features: int = EVERYTHING, *, running: bool = True
) -> AsyncIterator[tuple[FrontendLink, Peer]]:
    """A link over a socket, and the front-end's end of that; by default a ring runs."""
    runs = asyncio.Event()
    if running:
        runs.set()
    link = FrontendLink(Agreed(features), runs)
    ours, theirs = socket.socketpair()
    with Fd(ours.detach()) as fd:
        await link.set_backend_req_fd(Empty(), [fd])
    peer = Peer(Channel(theirs, BACK_END))
    try:
        yield link, peer
    finally:
        await link.close()
        peer.channel.close()


def test_a_config_change_is_told_without_asking_for_an_ack(run_async: Run) -> None:
    async def main() -> None:
        async with linked() as (link, peer):
            link.config_changed()
            message = await peer.hear(CONFIG_CHANGE_MSG)
            assert not message.needs_reply

    run_async(main)


def test_an_ack_that_nobody_asked_for_costs_no_config_change(run_async: Run) -> None:
    async def main() -> None:
        async with linked() as (link, peer):
            for _ in range(3):
                link.config_changed()
                await peer.hear(CONFIG_CHANGE_MSG)
                await peer.reply(CONFIG_CHANGE_MSG, U64(0))

    run_async(main)


def test_a_device_hears_the_reply_and_gets_its_fds(run_async: Run) -> None:
    async def main() -> None:
        async with linked() as (link, peer):
            asking = asyncio.create_task(link.ask(SHARED_OBJECT_LOOKUP, UUID))
            message = await peer.hear(SHARED_OBJECT_LOOKUP)
            assert (message.payload, message.needs_reply) == (UUID.pack(), False)
            await peer.reply(SHARED_OBJECT_LOOKUP, U64(0), 0)
            payload, (fd,) = await asking
            with fd:
                assert payload == U64(0)
                assert os.fstat(fd.fileno()) == os.fstat(0)

    run_async(main)


def test_replies_go_to_who_asked_also_when_somebody_has_given_up(run_async: Run) -> None:
    async def main() -> None:
        async with linked() as (link, peer):
            asking = [asyncio.create_task(link.ask(SHARED_OBJECT_LOOKUP, UUID)) for _ in range(3)]
            for _ in asking:
                await peer.hear(SHARED_OBJECT_LOOKUP)
            asking[1].cancel()
            for number in range(3):
                await peer.reply(SHARED_OBJECT_LOOKUP, U64(number), *([0] if number == 1 else []))
            assert [(await asking[number]).payload.value for number in (0, 2)] == [0, 2]

    run_async(main)


@pytest.mark.parametrize("ack", [0, 1])
def test_a_request_without_a_reply_is_acked(ack: int, run_async: Run) -> None:
    async def main() -> None:
        async with linked() as (link, peer):
            asking = asyncio.create_task(link.ask(SHARED_OBJECT_ADD, UUID))
            assert (await peer.hear(SHARED_OBJECT_ADD)).needs_reply
            await peer.reply(SHARED_OBJECT_ADD, U64(ack))
            if ack:
                with pytest.raises(RefusedRequest, match="SHARED_OBJECT_ADD was acked with 1"):
                    await asking
            else:
                assert (await asking).fds == []

    run_async(main)


def test_where_no_acks_were_agreed_on_nobody_waits_for_one(run_async: Run) -> None:
    async def main() -> None:
        async with linked(mask(ProtocolFeature.SHARED_OBJECT)) as (link, peer):
            assert (await link.ask(SHARED_OBJECT_REMOVE, UUID)).fds == []
            assert not (await peer.hear(SHARED_OBJECT_REMOVE)).needs_reply

    run_async(main)


def test_what_was_not_agreed_on_is_not_asked(run_async: Run) -> None:
    async def main() -> None:
        async with linked(mask(ProtocolFeature.CONFIG)) as (link, _):
            with pytest.raises(UnknownRequest, match="did not agree"):
                await link.ask(SHARED_OBJECT_LOOKUP, UUID)
        link = FrontendLink(Agreed(EVERYTHING), asyncio.Event())
        for nowhere, why in ((link, "no socket for requests"), (Link(), "nobody to ask")):
            with pytest.raises(UnknownRequest, match=why):
                await nowhere.ask(SHARED_OBJECT_LOOKUP, UUID)

    run_async(main)


@pytest.mark.parametrize("how", ["it goes", "nonsense", "another socket"])
def test_who_waits_hears_that_no_reply_comes(how: str, run_async: Run) -> None:
    async def main() -> None:
        async with linked() as (link, peer):
            asking = asyncio.create_task(link.ask(SHARED_OBJECT_LOOKUP, UUID))
            await peer.hear(SHARED_OBJECT_LOOKUP)
            if how == "it goes":
                peer.channel.close()
            elif how == "nonsense":
                await peer.reply(SHARED_OBJECT_ADD, U64(0))
            else:
                await link.close()
            with pytest.raises(MalformedMessage if how == "nonsense" else ConnectionError):
                await asking

    run_async(main)


def test_a_slow_front_end_blocks_nobody_else(run_async: Run) -> None:
    """Its buffer is full: the request waits, the event loop does not."""

    async def main() -> None:
        async with linked(mask(ProtocolFeature.SHARED_OBJECT)) as (link, peer):

            async def flood() -> None:
                while True:
                    await link.ask(SHARED_OBJECT_ADD, UUID)

            task = asyncio.create_task(flood())
            for _ in range(3):
                await asyncio.sleep(0)
            assert not task.done()
            await peer.hear(SHARED_OBJECT_ADD)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    run_async(main)


@pytest.mark.parametrize("features", [0, mask(ProtocolFeature.REPLY_ACK)])
def test_who_waits_to_ask_hears_that_no_reply_comes(features: int, run_async: Run) -> None:
    """The front-end never reads: its buffer is full when the socket is closed."""

    async def main() -> None:
        async with linked(mask(ProtocolFeature.SHARED_OBJECT) | features) as (link, _):
            asking = [asyncio.create_task(link.ask(SHARED_OBJECT_ADD, UUID)) for _ in range(2000)]
            for _ in range(3):
                await asyncio.sleep(0)
            waiting = [task for task in asking if not task.done()]
            await link.close()
            answers = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), PATIENCE)
            assert waiting
            assert all(isinstance(answer, ConnectionError) for answer in answers)

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
def test_an_fd_of_another_kind_is_refused_and_the_socket_before_stays(
    kind: str, why: str, run_async: Run
) -> None:
    async def main() -> None:
        async with linked() as (link, peer):
            with some_fd(kind) as fd:
                with pytest.raises(RefusedRequest, match=f"SET_BACKEND_REQ_FD with .*{why}"):
                    await link.set_backend_req_fd(Empty(), [fd])
                assert fd
            link.config_changed()
            await peer.hear(CONFIG_CHANGE_MSG)

    run_async(main)


def test_close_may_be_called_again(run_async: Run) -> None:
    async def main() -> None:
        async with linked() as (link, peer):
            await link.close()
            await link.close()
            assert await peer.channel.receive() is None

    run_async(main)


# --- In a session ---------------------------------------------------------------------------------------


def test_a_config_change_is_announced_while_rings_run(run_async: Run) -> None:
    async def main() -> None:
        device = Echo()
        async with negotiated(device) as (frontend, memory), backend_requests(frontend) as requests:
            device.config_changed()
            device.config_changed()  # suspended: both wait, as one
            queue = await frontend.start(memory)
            for _ in range(3):  # without a word of the front-end, which may never have one
                message = await requests.receive()
                assert message is not None
                assert (message.request, message.payload) == (CONFIG_CHANGE_MSG.request, b"")
                assert not message.needs_reply
                device.config_changed()
            queue.close()

    run_async(main)


def test_nothing_is_announced_while_all_rings_are_stopped(run_async: Run) -> None:
    async def main() -> None:
        device = Echo()
        async with negotiated(device) as (frontend, memory), backend_requests(frontend) as requests:
            queue = await frontend.start(memory)
            await frontend.stop(queue)
            device.config_changed()
            receiving = asyncio.create_task(requests.receive())
            for _ in range(3):
                await frontend.call(GET_QUEUE_NUM, Empty())
            assert not receiving.done()
            frontend.close()
            assert await receiving is None
            queue.close()

    run_async(main)


def test_the_socket_for_requests_may_be_replaced_or_close(run_async: Run) -> None:
    async def main() -> None:
        device = Echo()
        async with negotiated(device) as (frontend, memory):
            queue = await frontend.start(memory)
            async with backend_requests(frontend) as first, backend_requests(frontend) as second:
                assert await first.receive() is None
                device.config_changed()
                assert await second.receive() is not None
            assert await queue.request(b"lives on", 8) == b"lives on"
            queue.close()

    run_async(main)
