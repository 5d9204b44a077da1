"""The table at the top of dispatch.py, row by row."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.conftest import Run
from vhostd.errors import MalformedMessage, NoGuestMemory, RefusedRequest, UnknownRequest
from vhostd.vhost_user.dispatch import Agreed, Dispatcher
from vhostd.vhost_user.messages import (
    CHECK_DEVICE_STATE,
    FRONT_END,
    GET_CONFIG,
    GET_FEATURES,
    GET_INFLIGHT_FD,
    GET_QUEUE_NUM,
    GET_VRING_BASE,
    SET_FEATURES,
    SET_LOG_FD,
    SET_OWNER,
    SET_PROTOCOL_FEATURES,
    SET_STATUS,
    SET_VRING_BASE,
    SET_VRING_ERR,
    SET_VRING_KICK,
    SET_VRING_NUM,
    ConfigSpace,
    Inflight,
    ProtocolFeature,
    VringFd,
    VringState,
)
from vhostd.virtio.vocabulary import mask
from vhostd.wire.calls import Call, Fds, Reply, answer, answer_with_fds
from vhostd.wire.channel import Channel
from vhostd.wire.fds import Fd
from vhostd.wire.framing import HEADER, NEED_REPLY, REPLY, VERSION
from vhostd.wire.rows import U64, Empty, Row

REPLY_ACK = mask(ProtocolFeature.REPLY_ACK)
INFLIGHT = mask(ProtocolFeature.INFLIGHT_SHMFD)
ALL = (1 << 64) - 1
ACK, NACK = U64(0), U64(1)


class Service(Dispatcher):
    """A handler of each kind; `refuses` makes all of them refuse, `fault` raise something else."""

    def __init__(self, channel: Channel) -> None:
        self.agreed = Agreed()
        super().__init__(channel, self.served(), self.agreed)
        self.refuses = False
        self.fault: Exception | None = None
        self.go_on = asyncio.Event()
        self.seen: list[object] = []
        self.kept: list[Fd] = []

    def served(self) -> list[Call]:
        return [
            answer(GET_FEATURES, self.get_features),
            answer(SET_FEATURES, self.set_features),
            answer(GET_CONFIG, self.get_config),
            answer(GET_QUEUE_NUM, self.get_queue_num),
            answer(GET_VRING_BASE, self.get_vring_base),
            answer(SET_VRING_BASE, self.set_vring_base),
            answer_with_fds(SET_VRING_KICK, self.set_vring_kick),
            answer_with_fds(SET_VRING_ERR, self.set_vring_err),
            answer(SET_STATUS, self.set_status),
            answer(GET_INFLIGHT_FD, self.get_inflight_fd),
            answer(SET_LOG_FD, self.set_log_fd),
        ]

    def get_features(self, _: Empty) -> U64:
        return U64(0x1234)

    def _see(self, payload: object) -> None:
        self.seen.append(payload)
        if self.fault is not None:
            raise self.fault
        if self.refuses:
            raise RefusedRequest("not now")

    def set_features(self, features: U64) -> None:
        self._see(features)

    def get_config(self, wanted: ConfigSpace) -> ConfigSpace:
        self._see(wanted)
        return ConfigSpace(wanted.offset, b"x" * len(wanted.data))

    def get_queue_num(self, _: Empty) -> U64:
        self._see(None)
        return U64(2)

    async def get_vring_base(self, state: VringState) -> VringState:
        await self.go_on.wait()
        self._see(state)
        return VringState(state.index, 7)

    async def set_vring_base(self, state: VringState) -> None:
        await asyncio.sleep(0)
        self._see(state)

    def set_vring_kick(self, vring_fd: VringFd, fds: Fds) -> None:
        self._see(vring_fd)
        self.kept += [Fd(fd.take()) for fd in fds]

    def set_vring_err(self, vring_fd: VringFd, fds: Fds) -> None:
        self.kept += fds
        self._see(vring_fd)

    def set_status(self, status: U64) -> None:
        self._see(status)

    async def get_inflight_fd(self, wanted: Inflight) -> Reply[Inflight]:
        self._see(wanted)
        self.kept = [Fd(os.dup(0)), Fd(os.dup(0))]
        return Reply(wanted, self.kept)

    def set_log_fd(self, _: Empty) -> None:
        self._see(None)


class Peer:
    """The front-end's end: sends requests, reads what comes."""

    def __init__(self, sock: socket.socket, serving: "asyncio.Task[None]") -> None:
        self.channel = Channel(sock, FRONT_END, replies=True)
        self.serving = serving

    async def send(self, row: Row[Any, Any], payload: Any, *fds: Fd, ask: bool = False) -> None:
        data = FRONT_END.encode(row.request, payload, need_reply=ask)
        await self.channel.send(data, tuple(fd.fileno() for fd in fds))

    async def reply(self) -> tuple[int, int, bytes]:
        message = await self.channel.receive()
        assert message is not None, "the connection was closed"
        assert not message.fds
        return message.request, message.flags, message.payload

    async def answers(self, row: Row[Any, Any], payload: Any, expected: Any, *, ask: bool = False) -> None:
        await self.send(row, payload, ask=ask)
        assert await self.reply() == (row.request, VERSION | REPLY, expected.pack())

    async def is_silent(self) -> None:
        """Nothing is on its way before the answer to a request that is always served."""
        await self.answers(GET_FEATURES, Empty(), U64(0x1234))

    async def breaks_with(self, error: type[Exception], why: str) -> None:
        with pytest.raises(error, match=why):
            await self.serving


@asynccontextmanager
async def served(features: int = 0, kind: type[Service] = Service) -> AsyncIterator[tuple[Service, Peer]]:
    """A service whose protocol features are negotiated already, and its peer."""
    ours, theirs = socket.socketpair()
    channel = Channel(ours, FRONT_END)
    service = kind(channel)
    service.agreed.protocol_features = features
    peer = Peer(theirs, asyncio.create_task(service.answer_requests()))
    try:
        yield service, peer
    finally:
        peer.channel.close()
        await asyncio.wait([peer.serving])
        channel.close()


# --- Served ---------------------------------------------------------------------------------------------


def test_a_request_with_a_reply_of_its_own_gets_that_and_no_ack(run_async: Run) -> None:
    async def main() -> None:
        async with served(REPLY_ACK) as (_, peer):
            for ask in (False, True):
                await peer.answers(GET_FEATURES, Empty(), U64(0x1234), ask=ask)
            await peer.is_silent()

    run_async(main)


def test_a_served_request_gets_the_ack_0_if_it_asks(run_async: Run) -> None:
    async def main() -> None:
        async with served(REPLY_ACK) as (service, peer):
            await peer.answers(SET_FEATURES, U64(5), ACK, ask=True)
            await peer.send(SET_FEATURES, U64(6))
            await peer.is_silent()
            assert service.seen == [U64(5), U64(6)]

    run_async(main)


@pytest.mark.parametrize("refuses", [False, True])
def test_need_reply_counts_only_once_reply_ack_is_negotiated(*, refuses: bool, run_async: Run) -> None:
    async def main() -> None:
        async with served() as (service, peer):
            service.refuses = refuses
            await peer.send(SET_FEATURES, U64(5), ask=True)
            if refuses:
                await peer.breaks_with(RefusedRequest, "not now")
            else:
                await peer.is_silent()

    run_async(main)


def test_requests_wait_for_the_one_before(run_async: Run) -> None:
    async def main() -> None:
        async with served(REPLY_ACK) as (service, peer):
            await peer.send(GET_VRING_BASE, VringState(1, 0))
            await peer.send(SET_FEATURES, U64(5))
            await asyncio.sleep(0)
            assert service.seen == []
            service.go_on.set()
            assert await peer.reply() == (11, VERSION | REPLY, VringState(1, 7).pack())
            await peer.answers(SET_VRING_BASE, VringState(1, 8), ACK, ask=True)
            assert service.seen == [VringState(1, 0), U64(5), VringState(1, 8)]

    run_async(main)


def test_of_two_for_one_request_the_later_serves_it(run_async: Run) -> None:
    class Other(Service):
        def served(self) -> list[Call]:
            return [*super().served(), answer(GET_FEATURES, lambda _: U64(1))]

    async def main() -> None:
        async with served(kind=Other) as (_, peer):
            await peer.answers(GET_FEATURES, Empty(), U64(1))

    run_async(main)


# --- What real front-ends send --------------------------------------------------------------------------


@pytest.mark.parametrize("negotiates", [True, False])
@pytest.mark.parametrize("refuses", [False, True])
def test_the_message_that_negotiates_acks_may_ask_for_one(
    negotiates: bool,  # noqa: FBT001
    refuses: bool,  # noqa: FBT001
    run_async: Run,
) -> None:
    """As User-mode Linux does, which waits for it."""
    features = REPLY_ACK if negotiates else INFLIGHT

    class Negotiating(Service):
        def served(self) -> list[Call]:
            return [*super().served(), answer(SET_PROTOCOL_FEATURES, self.set_protocol_features)]

        def set_protocol_features(self, features: U64) -> None:
            self._see(features)
            self.agreed.protocol_features = features.value

    async def main() -> None:
        async with served(kind=Negotiating) as (service, peer):
            service.refuses = refuses
            await peer.channel.send(
                FRONT_END.encode(SET_PROTOCOL_FEATURES.request, U64(features), need_reply=True)
            )
            if negotiates:
                message = await peer.channel.receive()
                assert message is not None
                assert message.payload == U64(int(refuses)).pack()
            elif refuses:
                await peer.breaks_with(RefusedRequest, "not now")
            else:
                await peer.is_silent()

    run_async(main)


def test_what_is_behind_the_end_of_a_payload_is_ignored(run_async: Run) -> None:
    async def main() -> None:
        async with served(REPLY_ACK) as (service, peer):
            payload = U64(5).pack() + b"whatever"
            await peer.channel.send(HEADER.pack(2, VERSION | NEED_REPLY, len(payload)) + payload)
            message = await peer.channel.receive()
            assert message is not None
            assert (message.payload, service.seen) == (U64(0).pack(), [U64(5)])

    run_async(main)


@pytest.mark.parametrize("size", [20, 24, 32])
@pytest.mark.parametrize("refuses", [False, True])
def test_an_inflight_description_is_answered_as_long_as_it_was_asked_for(
    size: int,
    refuses: bool,  # noqa: FBT001
    run_async: Run,
) -> None:
    """The specification draws 20 bytes, C pads them to 24."""

    async def main() -> None:
        async with served(INFLIGHT) as (service, peer):
            service.refuses = refuses
            wanted = Inflight(1, 2, 3, 4)
            payload = wanted.pack()[:size].ljust(size, b"\0")
            await peer.channel.send(HEADER.pack(GET_INFLIGHT_FD.request, VERSION, size) + payload)
            message = await peer.channel.receive()
            assert message is not None
            assert service.seen == [wanted]
            assert message.payload == (bytes(24) if refuses else wanted.pack())[:size]
            message.close()

    run_async(main)


# --- Malformed ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (HEADER.pack(2, VERSION | NEED_REPLY, 7) + bytes(7), "SET_FEATURES with a payload of 7 bytes"),
        (HEADER.pack(7, VERSION | NEED_REPLY, 0), "SET_LOG_FD with 0 fds, not 1"),
        (HEADER.pack(1, 2, 0), "GET_FEATURES of protocol version 2"),
    ],
)
def test_a_malformed_request_ends_the_connection_even_if_it_asks_for_an_ack(
    data: bytes, why: str, run_async: Run
) -> None:
    async def main() -> None:
        async with served(ALL) as (service, peer):
            await peer.channel.send(data)
            await peer.breaks_with(MalformedMessage, why)
            assert service.seen == []

    run_async(main)


# --- Refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ask", [False, True])
def test_a_refused_request_gets_the_refusal_of_its_row(*, ask: bool, run_async: Run) -> None:
    async def main() -> None:
        async with served(ALL) as (service, peer):
            service.refuses = True
            await peer.answers(GET_CONFIG, ConfigSpace(0, bytes(4)), Empty(), ask=ask)
            await peer.is_silent()

    run_async(main)


def test_a_refused_request_gets_a_non_zero_ack_if_it_asks(run_async: Run) -> None:
    async def main() -> None:
        async with served(REPLY_ACK) as (service, peer):
            service.refuses = True
            await peer.answers(SET_FEATURES, U64(5), NACK, ask=True)
            await peer.answers(SET_VRING_BASE, VringState(0, 0), NACK, ask=True)
            await peer.is_silent()

    run_async(main)


def test_a_refused_request_that_asks_for_nothing_ends_the_connection(run_async: Run) -> None:
    async def main() -> None:
        async with served(REPLY_ACK) as (service, peer):
            service.refuses = True
            await peer.send(SET_FEATURES, U64(5))
            await peer.breaks_with(RefusedRequest, "not now")

    run_async(main)


def test_a_refused_request_whose_reply_cannot_say_no_ends_the_connection(run_async: Run) -> None:
    async def main() -> None:
        async with served(ALL) as (service, peer):
            service.refuses = True
            await peer.send(GET_QUEUE_NUM, Empty(), ask=True)
            await peer.breaks_with(RefusedRequest, "not now")

    run_async(main)


def test_a_ring_that_lacks_guest_memory_ends_no_connection(run_async: Run) -> None:
    async def main() -> None:
        async with served(REPLY_ACK) as (service, peer):
            service.fault = NoGuestMemory("no memory")
            await peer.answers(SET_VRING_BASE, VringState(0, 0), NACK, ask=True)
            await peer.send(SET_VRING_BASE, VringState(0, 0))
            await peer.is_silent()

    run_async(main)


# --- Unknown --------------------------------------------------------------------------------------------

UNKNOWN = pytest.mark.parametrize(
    "row",
    [SET_OWNER, SET_VRING_NUM, SET_STATUS],  # two without a handler, one without its feature
    ids=str,
)


@UNKNOWN
def test_an_unknown_request_gets_a_non_zero_ack_if_it_asks(row: Row[Any, Any], run_async: Run) -> None:
    async def main() -> None:
        async with served(REPLY_ACK) as (_, peer):
            await peer.answers(row, row.payload.unpack(bytes(row.payload.SIZE)), NACK, ask=True)
            await peer.is_silent()

    run_async(main)


@UNKNOWN
def test_an_unknown_request_that_asks_for_nothing_is_ignored(row: Row[Any, Any], run_async: Run) -> None:
    async def main() -> None:
        async with served(REPLY_ACK) as (_, peer):
            await peer.send(row, row.payload.unpack(bytes(row.payload.SIZE)))
            await peer.is_silent()

    run_async(main)


@pytest.mark.parametrize("number", [0, 45, 0xFFFF_FFFF])
def test_a_number_that_is_in_no_table_is_unknown(number: int, run_async: Run) -> None:
    async def main() -> None:
        async with served(REPLY_ACK) as (_, peer):
            await peer.channel.send(HEADER.pack(number, VERSION | NEED_REPLY, 5) + b"abcde")
            assert await peer.reply() == (number, VERSION | REPLY, NACK.pack())
            await peer.channel.send(HEADER.pack(number, VERSION, 0))
            await peer.is_silent()

    run_async(main)


@pytest.mark.parametrize("ask", [False, True])
@pytest.mark.parametrize(
    ("row", "features"), [(GET_QUEUE_NUM, REPLY_ACK), (GET_VRING_BASE, ALL)], ids=["no feature", "no handler"]
)
def test_an_unknown_request_whose_reply_is_awaited_ends_the_connection(
    *, row: Row[Any, Any], features: int, ask: bool, run_async: Run
) -> None:
    class Less(Service):
        def served(self) -> list[Call]:
            return [call for call in super().served() if call.row is not row]

    async def main() -> None:
        kind = Service if row.needs else Less
        async with served(features, kind) as (_, peer):
            await peer.send(row, row.payload.unpack(bytes(row.payload.SIZE)), ask=ask)
            await peer.breaks_with(UnknownRequest, str(row))

    run_async(main)


def test_an_unknown_request_whose_reply_can_say_no_gets_that(run_async: Run) -> None:
    async def main() -> None:
        async with served(ALL) as (_, peer):
            await peer.answers(CHECK_DEVICE_STATE, Empty(), NACK)

    run_async(main)


# --- Anything else --------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [ZeroDivisionError("ours"), ConnectionResetError("ours"), KeyError("ours")])
def test_any_other_exception_of_a_handler_is_the_caller_s(fault: Exception, run_async: Run) -> None:
    """A ConnectionError too: a handler's own connection is not the front-end's."""

    async def main() -> None:
        async with served(REPLY_ACK) as (service, peer):
            service.fault = fault
            await peer.send(SET_FEATURES, U64(5), ask=True)
            await peer.breaks_with(type(fault), "ours")

    run_async(main)


def test_serving_ends_when_the_peer_has_gone(run_async: Run) -> None:
    async def main() -> None:
        async with served() as (_, peer):
            peer.channel.close()
            await peer.serving

    run_async(main)


def test_serving_ends_when_the_peer_has_gone_before_its_reply(run_async: Run) -> None:
    async def main() -> None:
        async with served(REPLY_ACK) as (service, peer):
            await peer.send(GET_VRING_BASE, VringState(1, 0))
            peer.channel.close()
            service.go_on.set()
            await peer.serving
            assert service.seen == [VringState(1, 0)]

    run_async(main)


# --- Fds ------------------------------------------------------------------------------------------------


def test_fds_that_the_handler_took_stay_open(run_async: Run) -> None:
    async def main() -> None:
        async with served(REPLY_ACK) as (service, peer):
            with Fd(os.dup(0)) as fd:
                await peer.send(SET_VRING_KICK, VringFd(0), fd, ask=True)
                await peer.reply()
            (kept,) = service.kept
            assert os.fstat(kept.fileno()).st_ino == os.fstat(0).st_ino
            kept.close()

    run_async(main)


@pytest.mark.parametrize("refuses", [False, True])
def test_fds_that_nobody_took_are_closed_before_the_answer(*, refuses: bool, run_async: Run) -> None:
    async def main() -> None:
        async with served(REPLY_ACK) as (service, peer):
            service.refuses = refuses
            with Fd(os.dup(0)) as fd:
                await peer.send(SET_VRING_ERR, VringFd(0), fd, ask=True)
                await peer.reply()
            assert len(service.kept) == 1
            assert not any(service.kept)

    run_async(main)


@pytest.mark.parametrize(
    "row", [SET_FEATURES, SET_OWNER, SET_LOG_FD], ids=["surplus", "unknown", "not wanted"]
)
def test_fds_of_requests_without_use_for_them_are_closed(row: Row[Any, Any], run_async: Run) -> None:
    """The autouse fixture looks for what is left."""

    async def main() -> None:
        async with served(REPLY_ACK) as (_, peer):
            with Fd(os.dup(0)) as fd:
                await peer.send(row, row.payload.unpack(bytes(row.payload.SIZE)), fd)
            if row is SET_FEATURES:
                await peer.breaks_with(MalformedMessage, "SET_FEATURES with 1 fds, not 0")
            else:
                await peer.is_silent()

    run_async(main)


def test_fds_of_a_reply_are_sent_with_it_and_closed(run_async: Run) -> None:
    async def main() -> None:
        async with served(INFLIGHT) as (service, peer):
            await peer.send(GET_INFLIGHT_FD, wanted := Inflight(1, 2, 3, 4))
            message = await peer.channel.receive()
            assert message is not None
            assert (message.request, message.payload) == (GET_INFLIGHT_FD.request, wanted.pack())
            assert [os.fstat(fd.fileno()).st_ino for fd in message.fds] == [os.fstat(0).st_ino] * 2
            message.close()
            await peer.is_silent()
            assert len(service.kept) == 2
            assert not any(service.kept)

    run_async(main)


def test_a_refusal_has_no_fds(run_async: Run) -> None:
    async def main() -> None:
        async with served(INFLIGHT) as (service, peer):
            service.refuses = True
            await peer.answers(GET_INFLIGHT_FD, Inflight(1, 2, 3, 4), Inflight(0, 0, 0, 0))

    run_async(main)


def test_fds_of_a_reply_are_closed_if_the_peer_has_gone(run_async: Run) -> None:
    async def main() -> None:
        async with served(INFLIGHT) as (service, peer):
            await peer.send(GET_INFLIGHT_FD, Inflight(1, 2, 3, 4))
            peer.channel.close()
            await peer.serving
            assert len(service.kept) == 2
            assert not any(service.kept)

    run_async(main)
