"""What a back-end asks, and what a front-end of ours answers."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest

from tests.conftest import Run
from tests.frontend.modest import modest
from tests.sessions import Echo, negotiated
from vhostd import Call, answer
from vhostd.errors import MalformedMessage, RefusedRequest
from vhostd.frontend import BackendRequests, Iommu, SharedObjects
from vhostd.frontend.raw import NEED_REPLY, REPLY, VERSION, raw_message
from vhostd.vhost_user.messages import (
    BACKEND_IOTLB_MSG,
    CONFIG_CHANGE_MSG,
    GET_FEATURES,
    GET_SHARED_OBJECT,
    SET_BACKEND_REQ_FD,
    SHARED_OBJECT_ADD,
    SHARED_OBJECT_LOOKUP,
    SHARED_OBJECT_REMOVE,
    Iotlb,
    IotlbType,
    ProtocolFeature,
    SharedObject,
)
from vhostd.virtio.vocabulary import mask
from vhostd.wire.fds import Fd, close_all
from vhostd.wire.rows import U64, Empty


class Asking(Echo):
    """May ask for shared objects."""

    protocol_features = mask(ProtocolFeature.SHARED_OBJECT)

    @property
    def calls(self) -> Sequence[Call]:
        return [answer(GET_SHARED_OBJECT, lambda _: Empty())]


@asynccontextmanager
async def asking(*calls: Call) -> AsyncIterator[tuple[Asking, BackendRequests]]:
    """A device whose ring runs, and a front-end that answers what it asks."""
    device = Asking()
    async with negotiated(device) as (frontend, memory):
        requests = BackendRequests(frontend, calls)
        await requests.connect()
        queue = await frontend.start(memory)
        try:
            yield device, requests
        finally:
            queue.close()
            await requests.close()


def test_the_config_has_changed(run_async: Run) -> None:
    async def main() -> None:
        async with asking() as (device, requests):
            device.link.config_changed()
            assert await requests.told(CONFIG_CHANGE_MSG) == Empty()
            assert requests.failure is None

    run_async(main)


def test_shared_objects(run_async: Run) -> None:
    objects, uuid = SharedObjects(), uuid4()
    wanted = SharedObject(uuid.bytes)

    async def main() -> None:
        with Fd(os.memfd_create("object")) as fd:
            async with asking(*objects.calls) as (device, requests):
                await device.link.ask(SHARED_OBJECT_ADD, wanted)
                assert objects.added == {uuid}
                with pytest.raises(RefusedRequest):
                    await device.link.ask(SHARED_OBJECT_ADD, wanted)
                await device.link.ask(SHARED_OBJECT_REMOVE, wanted)
                with pytest.raises(RefusedRequest):
                    await device.link.ask(SHARED_OBJECT_REMOVE, wanted)
                assert (await device.link.ask(SHARED_OBJECT_LOOKUP, wanted)).payload.value == 1
                objects.given[uuid] = fd
                found = await device.link.ask(SHARED_OBJECT_LOOKUP, wanted)
                assert found.payload.value == 0
                assert os.path.sameopenfile(found.fds[0].fileno(), fd.fileno())
                close_all(found.fds)
                assert await requests.told(SHARED_OBJECT_LOOKUP) == wanted

    run_async(main)


# --- A back-end by hand -----------------------------------------------------------------------------------


@asynccontextmanager
async def by_hand(*calls: Call, agreed: int = ~0) -> AsyncIterator[tuple[socket.socket, BackendRequests]]:
    """The back-end's end of its channel."""
    async with modest(0) as (backend, frontend):
        frontend.protocol_features = mask(ProtocolFeature.BACKEND_REQ)
        requests = BackendRequests(frontend, calls)
        await requests.connect()
        await frontend.call(GET_FEATURES, Empty())  # the fd has arrived
        frontend.protocol_features = agreed
        with socket.socket(fileno=backend.fds[SET_BACKEND_REQ_FD.request].take()) as sock:
            sock.setblocking(False)
            yield sock, requests
        await requests.close()


async def answered(sock: socket.socket, message: bytes) -> bytes:
    """What comes back for a message, and for no more than that."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, message)
    async with asyncio.timeout(20):
        return await loop.sock_recv(sock, 4096)


def ack(number: int, value: int) -> bytes:
    return raw_message(number, U64(value).pack(), flags=VERSION | REPLY)


def asked(number: int, payload: bytes = b"") -> bytes:
    return raw_message(number, payload, flags=VERSION | NEED_REPLY)


def test_what_nobody_answers_is_refused(run_async: Run) -> None:
    unknown, unanswered = 99, SHARED_OBJECT_ADD.request

    async def main() -> None:
        async with by_hand() as (sock, requests):
            assert await answered(sock, asked(unknown)) == ack(unknown, 1)
            assert await answered(sock, asked(unanswered, bytes(16))) == ack(unanswered, 1)
            assert await requests.told(SHARED_OBJECT_ADD) == SharedObject(bytes(16))
            changed = CONFIG_CHANGE_MSG.request
            quietly = raw_message(changed)
            assert await answered(sock, quietly + asked(changed)) == ack(changed, 0)

    run_async(main)


def test_what_was_not_agreed_on_is_refused(run_async: Run) -> None:
    changed = CONFIG_CHANGE_MSG.request

    async def main() -> None:
        async with by_hand(agreed=0) as (sock, _):
            assert await answered(sock, asked(changed)) == ack(changed, 1)

    run_async(main)


def test_what_is_malformed_ends_it(run_async: Run) -> None:
    async def main() -> None:
        async with by_hand() as (sock, requests):
            assert await answered(sock, raw_message(SHARED_OBJECT_ADD.request, bytes(15))) == b""
            assert isinstance(requests.failure, MalformedMessage)

    run_async(main)


def test_a_fault_of_the_test_s_own_is_not_hidden(run_async: Run) -> None:
    def fault(_: Empty) -> None:
        raise ZeroDivisionError

    async def main() -> None:
        async with by_hand(answer(CONFIG_CHANGE_MSG, fault)) as (sock, requests):
            await asyncio.get_running_loop().sock_sendall(sock, asked(CONFIG_CHANGE_MSG.request))
            await requests.told(CONFIG_CHANGE_MSG)

    with pytest.raises(ZeroDivisionError):
        run_async(main)


def test_an_iommu_beside_others(run_async: Run) -> None:
    """It says no for a page that is not there, and tells of an access that failed."""
    number = BACKEND_IOTLB_MSG.request

    async def main() -> None:
        async with modest(0) as (_, frontend):
            iommu = Iommu(frontend)
        async with by_hand(*iommu.calls) as (sock, _):
            for kind in (IotlbType.MISS, IotlbType.ACCESS_FAIL):
                wish = Iotlb(0x5000, 0, 0, 1, kind).pack()
                assert await answered(sock, asked(number, wish)) == ack(number, 1)
            assert iommu.misses == iommu.failures == [(0x5000, 1)]

    run_async(main)
