"""Kicks, calls and errs that are messages, as User-mode Linux has them in its time-travel mode."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.conftest import Run
from tests.sessions import NO_FD, Echo, backend_requests, closed, connected, negotiated, refused
from vhostd.frontend import Frontend, Queue, SharedMemory, signalled
from vhostd.vhost_user.messages import (
    BACK_END,
    BACKEND_VRING_CALL,
    BACKEND_VRING_ERR,
    GET_FEATURES,
    GET_QUEUE_NUM,
    SET_PROTOCOL_FEATURES,
    SET_VRING_CALL,
    SET_VRING_ENABLE,
    SET_VRING_KICK,
    VRING_KICK,
    ProtocolFeature,
    VringFd,
    VringState,
)
from vhostd.vhost_user.offer import CHOICES, Offer
from vhostd.virtio.vocabulary import mask
from vhostd.wire.channel import Channel
from vhostd.wire.rows import U64, Empty, Row

EVERYTHING = Offer(CHOICES)


def answered(queue: Queue) -> bytes:
    """What the device has written into the next chain that it has used; of the one after it one is told."""
    used = queue.poll()
    assert used is not None
    queue.driver.arm()
    return used[1]


class Bench:
    """A front-end that has passed no fds, and where the back-end's requests arrive."""

    def __init__(self, frontend: Frontend, memory: SharedMemory, requests: Channel) -> None:
        self.frontend = frontend
        self.memory = memory
        self.requests = requests
        self.queues: list[Queue] = []

    async def ring(self, index: int = 0, size: int = 64) -> Queue:
        """A ring that is set up and enabled."""
        queue = Queue(self.memory, index, size, self.frontend.features)
        self.queues.append(queue)
        await self.frontend.set_up(queue)
        await self.frontend.call(SET_VRING_ENABLE, VringState(index, 1))
        return queue

    async def kick(self, index: int = 0) -> None:
        await self.frontend.call(VRING_KICK, VringState(index, 0))

    async def hear(self, row: Row[VringState, None], index: int = 0) -> None:
        """The next request of the back-end, which must be this and ask for an ack."""
        message = await self.requests.receive()
        assert message is not None
        assert message.needs_reply
        assert (message.request, message.payload) == (row.request, VringState(index, 0).pack())

    async def ack(self, row: Row[Any, Any], value: int = 0) -> None:
        await self.requests.send(BACK_END.encode(row.request, U64(value), reply=True))

    @asynccontextmanager
    async def silence(self) -> AsyncIterator[None]:
        """Within it the back-end must send no request."""
        hearing = asyncio.create_task(self.requests.receive())
        yield
        for _ in range(3):
            await self.frontend.call(GET_QUEUE_NUM, Empty())
        assert not hearing.done()
        hearing.cancel()
        await asyncio.wait([hearing])


@asynccontextmanager
async def bench(device: Echo | None = None) -> AsyncIterator[Bench]:
    """A session that has agreed on all there is."""
    async with (
        negotiated(device or Echo(), offer=EVERYTHING) as (frontend, memory),
        backend_requests(frontend) as requests,
    ):
        made = Bench(frontend, memory, requests)
        yield made
        for queue in made.queues:
            queue.close()


def test_a_kick_starts_the_ring_and_is_acked_when_the_device_is_done(run_async: Run) -> None:
    """User-mode Linux sends no SET_VRING_KICK, and waits for each ack before it does anything else."""

    async def main() -> None:
        async with bench() as b:
            queue = await b.ring()
            for number in range(100):
                queue.add(b"%03d" % number, 3)
                await b.kick()
                assert answered(queue) == b"%03d" % number
                await b.hear(BACKEND_VRING_CALL)
                await b.ack(BACKEND_VRING_CALL)

    run_async(main)


def test_a_call_is_on_its_way_before_the_kick_is_acked(
    run_async: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with bench() as b:
            queue = await b.ring()
            queue.add(b"x", 1)
            await b.kick()

    caplog.set_level("DEBUG")
    run_async(main)
    sent = [line for line in caplog.messages if line.startswith("> ")]
    assert sent.index("> back-end BACKEND_VRING_CALL index=0 num=0") < sent.index("> VRING_KICK value=0")


def test_a_full_ring_is_served_before_the_ack(run_async: Run) -> None:
    async def main() -> None:
        async with bench() as b:
            queue = await b.ring(size=256)
            for _ in range(128):
                queue.add(b"many", 4)
            await b.kick()
            assert sum(queue.poll() is not None for _ in range(129)) == 128

    run_async(main)


def test_a_kick_waits_for_what_it_has_begun(run_async: Run) -> None:
    """In a simulation the request takes no time then, and its end comes always at the same moment."""

    async def main() -> None:
        device = Echo()
        async with bench(device) as b:
            queue = await b.ring(index=1)
            queue.add(b"slow", 4)
            kicking = asyncio.create_task(b.kick(1))
            await device.holding.wait()
            for _ in range(9):
                await asyncio.sleep(0)
            assert not kicking.done()
            device.release()
            await kicking
            assert answered(queue) == b"held"
            await b.hear(BACKEND_VRING_CALL, 1)

    run_async(main)


def test_a_kick_does_not_wait_long(run_async: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vhostd.vhost_user.rings.KICK_PATIENCE", 0.01)

    async def main() -> None:
        device = Echo()
        async with bench(device) as b:
            queue = await b.ring(index=1)
            queue.add(b"slow", 4)
            async with b.silence():
                await b.kick(1)
                await device.holding.wait()
            device.release()
            await b.hear(BACKEND_VRING_CALL, 1)
            assert answered(queue) == b"held"

    run_async(main)


@pytest.mark.parametrize("answer", [0, 1])
def test_one_call_is_under_way_at_a_time(answer: int, run_async: Run) -> None:
    async def main() -> None:
        async with bench() as b:
            queue = await b.ring()

            async def request() -> None:
                queue.add(b"x", 1)
                await b.kick()
                assert answered(queue) == b"x"

            await request()
            await b.hear(BACKEND_VRING_CALL)
            async with b.silence():
                for _ in range(3):
                    await request()
            await b.ack(BACKEND_VRING_CALL, answer)
            if answer == 0:
                await b.hear(BACKEND_VRING_CALL)
                await b.ack(BACKEND_VRING_CALL)
            async with b.silence():
                pass
            await request()  # and a call that was refused is not the last
            await b.hear(BACKEND_VRING_CALL)

    run_async(main)


def test_each_ring_has_its_own_calls(run_async: Run) -> None:
    async def main() -> None:
        device = Echo()
        async with bench(device) as b:
            first, second = await b.ring(), await b.ring(index=1)
            first.add(b"x", 1)
            await b.kick()
            await b.hear(BACKEND_VRING_CALL)
            second.add(b"x", 1)
            await b.kick(1)
            device.release()
            await b.hear(BACKEND_VRING_CALL, 1)  # although the other is not acked

    run_async(main)


def test_a_broken_ring_is_told_by_a_message(run_async: Run) -> None:
    async def main() -> None:
        async with bench() as b:
            queue = await b.ring()
            queue.memory.map.write(queue.driver.avail_addr + 2, (0x4000).to_bytes(2, "little"))
            await b.kick()
            await b.hear(BACKEND_VRING_ERR)
            await b.ack(BACKEND_VRING_ERR, 1)  # User-mode Linux does not know it
            assert await b.frontend.stop(queue) == 0

    run_async(main)


def test_a_stopped_ring_sends_nothing_and_goes_on_with_the_next_kick(run_async: Run) -> None:
    async def main() -> None:
        async with bench() as b:
            queue = await b.ring()
            for _ in range(2):
                queue.add(b"x", 1)
                await b.kick()
                assert answered(queue) == b"x"
            await b.hear(BACKEND_VRING_CALL)
            async with b.silence():  # also the second call, which has waited
                base = await b.frontend.stop(queue)
                await b.ack(BACKEND_VRING_CALL)
            assert base == 2
            queue.add(b"y", 1)
            await b.kick()
            assert answered(queue) == b"y"
            await b.hear(BACKEND_VRING_CALL)

    run_async(main)


def test_fds_are_preferred(run_async: Run) -> None:
    async def main() -> None:
        async with bench() as b:
            queue = await b.ring()
            async with b.silence():
                await b.frontend.call(SET_VRING_KICK, VringFd(0), queue.kick_fd)
                await b.frontend.call(SET_VRING_CALL, VringFd(0), queue.call_fd)
                assert await queue.request(b"fd", 2) == b"fd"
                queue.driver.arm()
                queue.add(b"both", 4)
                await b.kick()  # costs nothing
                await signalled(queue.call_fd)
                assert answered(queue) == b"both"
            await b.frontend.call(SET_VRING_CALL, VringFd(NO_FD))
            queue.add(b"x", 1)
            await b.kick()
            await b.hear(BACKEND_VRING_CALL)

    run_async(main)


def test_without_a_socket_for_it_a_call_is_lost_and_nothing_else(run_async: Run) -> None:
    async def main() -> None:
        async with negotiated(Echo(), offer=EVERYTHING) as (frontend, memory):
            queue = Queue(memory, 0, 64, frontend.features)
            await frontend.set_up(queue)
            await frontend.call(SET_VRING_ENABLE, VringState(0, 1))
            queue.add(b"polled", 6)
            await frontend.call(VRING_KICK, VringState(0, 0))
            assert answered(queue) == b"polled"
            queue.close()

    run_async(main)


def test_a_front_end_may_go_without_an_ack(run_async: Run) -> None:
    async def main() -> None:
        async with bench() as b:
            queue = await b.ring()
            queue.add(b"x", 1)
            await b.kick()
            await b.hear(BACKEND_VRING_CALL)

    run_async(main)


def test_a_kick_needs_a_ring(run_async: Run) -> None:
    async def main() -> None:
        async with bench() as b:
            await refused(b.kick())
            await refused(b.kick(7))

    run_async(main)


def test_a_kick_is_unknown_if_it_was_not_agreed_on(run_async: Run) -> None:
    async def main() -> None:
        async with negotiated(Echo()) as (frontend, _):
            await refused(frontend.call(VRING_KICK, VringState(0, 0)))

    run_async(main)


@pytest.mark.parametrize("lacking", [ProtocolFeature.BACKEND_REQ, ProtocolFeature.REPLY_ACK])
def test_in_band_without_what_it_needs_ends_the_connection(lacking: int, run_async: Run) -> None:
    needed = {ProtocolFeature.BACKEND_REQ, ProtocolFeature.REPLY_ACK, ProtocolFeature.INBAND_NOTIFICATIONS}

    async def main() -> None:
        async with connected(Echo(), EVERYTHING) as frontend:
            await frontend.call(SET_PROTOCOL_FEATURES, U64(mask(*(needed - {lacking}))))
            await closed(frontend)
        async with connected(Echo(), EVERYTHING) as frontend:
            await frontend.negotiate(protocol_features=mask(*needed))
            await frontend.call(GET_FEATURES, Empty())

    run_async(main)


def test_after_a_malformed_ack_another_socket_gets_calls(run_async: Run) -> None:
    async def main() -> None:
        async with bench() as b:
            queue = await b.ring()
            queue.add(b"one", 3)
            await b.kick()
            await b.hear(BACKEND_VRING_CALL)
            assert answered(queue) == b"one"
            await b.requests.send(BACK_END.encode(BACKEND_VRING_CALL.request, Empty(), reply=True))
            for _ in range(3):
                await b.frontend.call(GET_QUEUE_NUM, Empty())
            async with backend_requests(b.frontend) as b.requests:
                queue.add(b"two", 3)
                await b.kick()
                assert answered(queue) == b"two"
                await b.hear(BACKEND_VRING_CALL)

    run_async(main)
