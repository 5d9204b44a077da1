"""What a device may add to the protocol: messages, a protocol feature, questions to its front-end."""

import asyncio
import os
from collections.abc import Sequence

import pytest

from tests.conftest import Run
from tests.sessions import Echo, backend_requests, connected
from vhostd import U64, Call, Empty, Fd, Fds, Layout, Reply, Row, answer, answer_with_fds, u32
from vhostd.errors import RefusedRequest
from vhostd.frontend import Frontend
from vhostd.vhost_user.messages import (
    GET_FEATURES,
    GET_SHARED_OBJECT,
    SHARED_OBJECT_LOOKUP,
    ProtocolFeature,
    SharedObject,
)
from vhostd.virtio.vocabulary import mask
from vhostd.wire.rows import ONE_FD

UUID = SharedObject(b"sixteen bytes...")


class Page(Layout, byteorder="="):
    """Which page of a file is meant."""

    number: u32


SWAP = Row(1000, Page, reply=U64, fds=ONE_FD, reply_fds=ONE_FD)


class Toy(Echo):
    """Takes a file and gives another, shares an object, and looks up those of others."""

    protocol_features = mask(ProtocolFeature.SHARED_OBJECT)

    def __init__(self) -> None:
        super().__init__()
        self.got: list[Fd] = []

    @property
    def calls(self) -> Sequence[Call]:
        return [
            answer_with_fds(SWAP, self.swap),
            answer(GET_SHARED_OBJECT, self.get_shared_object),
        ]

    def swap(self, page: Page, fds: Fds) -> Reply[U64]:
        if page.number > 7:
            raise RefusedRequest(f"there is no page {page.number}")
        self.got.append(Fd(fds[0].take()))
        return Reply(U64(page.number + 1), [Fd(os.open("/dev/zero", os.O_RDONLY))])

    def get_shared_object(self, wanted: SharedObject) -> Reply[Empty]:
        assert wanted == UUID
        return Reply(Empty(), [Fd(os.dup(self.got[0].fileno()))])

    async def look_up(self) -> tuple[int, Fds]:
        reply = await self.link.ask(SHARED_OBJECT_LOOKUP, UUID)
        return reply.payload.value, reply.fds

    def close(self) -> None:
        for fd in self.got:
            fd.close()


async def swap(frontend: Frontend, number: int) -> tuple[U64, list[Fd]]:
    with Fd(os.open("/dev/null", os.O_RDONLY)) as fd:
        return await frontend.call_for_fds(SWAP, Page(number), fd)


def is_file(fd: Fd, path: str) -> bool:
    return os.fstat(fd.fileno()).st_rdev == os.stat(path).st_rdev


def test_a_message_with_an_fd_and_an_answer(run_async: Run) -> None:
    async def main() -> None:
        device = Toy()
        async with connected(device) as frontend:
            await frontend.negotiate()
            number, (fd,) = await swap(frontend, 3)
            with fd:
                assert number == U64(4)
                assert is_file(fd, "/dev/zero")
            assert is_file(device.got[0], "/dev/null")
            reply, (shared,) = await frontend.call_for_fds(GET_SHARED_OBJECT, UUID)
            with shared:
                assert reply == Empty()
                assert is_file(shared, "/dev/null")
        device.close()

    run_async(main)


def test_a_message_of_a_device_costs_what_the_policy_says(run_async: Run) -> None:
    """It has a reply of its own, and no way to say no in it."""

    async def main() -> None:
        device = Toy()
        async with connected(device) as frontend:
            await frontend.negotiate()
            with pytest.raises(ConnectionError):
                await swap(frontend, 8)
        assert not device.got

    run_async(main)


def test_a_protocol_feature_of_a_device(run_async: Run) -> None:
    feature = mask(ProtocolFeature.SHARED_OBJECT)

    async def main() -> None:
        for device, offered in ((Toy(), feature), (Echo(), 0)):
            async with connected(device) as frontend:
                await frontend.negotiate()
                assert frontend.protocol_features & feature == offered
        async with connected(Toy()) as frontend:
            await frontend.negotiate(protocol_features=~feature)
            with pytest.raises(ConnectionError):
                await frontend.call(GET_SHARED_OBJECT, UUID)

    run_async(main)


def test_a_device_asks_its_front_end(run_async: Run) -> None:
    async def main() -> None:
        device = Toy()
        with pytest.raises(RefusedRequest, match="nobody to ask"):
            await device.look_up()
        async with connected(device) as frontend:
            await frontend.negotiate()
            async with backend_requests(frontend) as channel:
                asking = asyncio.create_task(device.look_up())
                message = await channel.receive()
                assert message is not None
                assert message.request == SHARED_OBJECT_LOOKUP.request
                data = channel.dialect.encode(message.request, U64(0), reply=True)
                with Fd(os.open("/dev/null", os.O_RDONLY)) as fd:
                    await channel.send(data, (fd.fileno(),))
                value, (found,) = await asking
                with found:
                    assert value == 0
                    assert is_file(found, "/dev/null")
                await frontend.call(GET_FEATURES, Empty())
        with pytest.raises(RefusedRequest, match="nobody to ask"):
            await device.look_up()

    run_async(main)
