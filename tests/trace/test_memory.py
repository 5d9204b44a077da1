"""What the rings hold is kept before the device sees it, in both formats."""

import os
import struct

import pytest

from tests.conftest import Run
from tests.sessions import Echo
from tests.trace.recorded import recorded
from vhostd.errors import GuestError
from vhostd.frontend import Queue, SharedMemory, signalled
from vhostd.trace import rings as module
from vhostd.trace.entries import AnyEntry, Note, Rings
from vhostd.vhost_user.messages import (
    GET_VRING_BASE,
    SET_VRING_CALL,
    SET_VRING_ENABLE,
    SET_VRING_KICK,
    VringFd,
    VringState,
)

PACKED = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])


def rings(entries: list[AnyEntry]) -> list[Rings]:
    return [each for each in entries if isinstance(each, Rings)]


def kicks(entries: list[AnyEntry]) -> list[Rings]:
    return [each for each in rings(entries) if each.event == "kick"]


def holds(kept: Rings, data: bytes) -> bool:
    return any(piece.data == data for piece in kept.memory)


@PACKED
def test_each_kick_tells_what_is_new(run_async: Run, *, packed: bool) -> None:
    async def main() -> None:
        entries: list[AnyEntry] = []
        memory = SharedMemory(1 << 20)
        async with recorded(Echo(), entries, memory=True) as frontend:
            await frontend.negotiate(packed=packed)
            await frontend.share(memory)
            queue = await frontend.start(memory, index=0, size=4)
            for i in range(20):  # the ring goes round
                assert await queue.request(b"request %d" % i, 20) == b"request %d" % i
            queue.close()
        memory.close()
        seen = kicks(entries)
        assert [each.chains for each in seen] == [1] * 20
        assert [each.done for each in seen] == list(range(20))
        assert all(holds(each, b"request %d" % i) for i, each in enumerate(seen))
        assert [(each.event, each.done) for each in rings(entries) if each not in seen] == [
            ("start", 0),
            ("end", 20),
        ]

    run_async(main)


@PACKED
def test_several_chains_and_an_indirect_table(run_async: Run, *, packed: bool) -> None:
    async def main() -> None:
        entries: list[AnyEntry] = []
        memory = SharedMemory(1 << 20)
        async with recorded(Echo(), entries, memory=True) as frontend:
            await frontend.negotiate(packed=packed)
            await frontend.share(memory)
            queue = await frontend.start(memory, index=0, size=8)
            buffers = [(memory.allocate(4), 4, False), (memory.allocate(4), 4, False)]
            for (addr, _, _), data in zip(buffers, (b"this", b"that"), strict=True):
                memory.map.write(addr, data)
            queue.driver.add(buffers, indirect=memory.allocate(32))
            queue.add(b"other", 5)
            queue.kick()
            for _ in range(2):
                while queue.driver.used() is None:
                    if not queue.driver.arm():
                        await signalled(queue.call_fd)
            queue.close()
        memory.close()
        (kick,) = kicks(entries)
        assert kick.chains == 2
        assert all(holds(kick, data) for data in (b"this", b"that", b"other"))
        assert not kick.cut

    run_async(main)


@PACKED
def test_what_is_there_at_the_start(run_async: Run, *, packed: bool) -> None:
    async def main() -> None:
        entries: list[AnyEntry] = []
        memory = SharedMemory(1 << 20)
        async with recorded(Echo(), entries, memory=True) as frontend:
            await frontend.negotiate(packed=packed)
            await frontend.share(memory)
            queue = Queue(memory, 0, 8, frontend.features)
            queue.add(b"early", 5)
            await frontend.set_up(queue)
            await frontend.call(SET_VRING_CALL, VringFd(0), queue.call_fd)
            await frontend.call(SET_VRING_KICK, VringFd(0), queue.kick_fd)
            await frontend.call(SET_VRING_ENABLE, VringState(0, 1))
            await queue.used()
            base = await frontend.call(GET_VRING_BASE, VringState(0, 0))
            assert base.num
            queue.close()
        memory.close()
        (start,) = rings(entries)
        assert (start.event, start.chains) == ("start", 1)
        assert holds(start, b"early")

    run_async(main)


def test_too_much_is_cut(run_async: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 2048)

    async def main() -> None:
        entries: list[AnyEntry] = []
        memory = SharedMemory(1 << 20)
        async with recorded(Echo(), entries, memory=True) as frontend:
            await frontend.negotiate()
            await frontend.share(memory)
            queue = await frontend.start(memory, index=0, size=4)
            await queue.request(bytes(4096), 1)
            queue.close()
        memory.close()
        (kick,) = kicks(entries)
        assert kick.cut
        assert sum(len(piece.data) for piece in kick.memory) < 100

    run_async(main)


def test_a_hostile_ring_is_followed_no_more(run_async: Run) -> None:
    async def main() -> None:
        entries: list[AnyEntry] = []
        memory = SharedMemory(1 << 20)
        async with recorded(Echo(), entries, memory=True) as frontend:
            await frontend.negotiate()
            await frontend.share(memory)
            queue = await frontend.start(memory, index=0, size=4)
            await queue.request(b"fine", 4)
            queue.driver.set_avail_index(1000)
            os.eventfd_write(queue.kick_fd.fileno(), 1)
            with pytest.raises(GuestError, match="broken"):
                await queue.used()
            queue.close()
        memory.close()
        assert "ring 0 cannot be followed any more: 999 chains are new in a ring of 4" in [
            each.note for each in entries if isinstance(each, Note)
        ]

    run_async(main)


@pytest.mark.parametrize("descriptor", [(0x1000_0000, 16, 1, 0), (1 << 60, 16, 0, 0), (1 << 60, 16, 4, 0)])
def test_chains_that_go_in_circles_or_lead_nowhere(
    run_async: Run, descriptor: tuple[int, int, int, int]
) -> None:
    """The device refuses them; they are kept as far as they go."""

    async def main() -> None:
        entries: list[AnyEntry] = []
        memory = SharedMemory(1 << 20)
        async with recorded(Echo(), entries, memory=True) as frontend:
            await frontend.negotiate()
            await frontend.share(memory)
            queue = await frontend.start(memory, index=0, size=4)
            queue.driver.descriptor(0, *descriptor)
            queue.driver.offer(0)
            queue.driver.publish()
            queue.kick()
            with pytest.raises(GuestError, match="broken"):
                await queue.used()
            queue.close()
        memory.close()
        (kick,) = kicks(entries)
        assert kick.chains == 1
        assert kick.cut == (descriptor[0] == 1 << 60)

    run_async(main)


def test_a_position_in_a_packed_ring_goes_round() -> None:
    at = module._Position(0x8003, 4)
    assert at.is_available(module.AVAIL)
    assert at.is_used(module.AVAIL | module.USED)
    at.advance(1)
    assert at.index == 0
    assert at.is_available(module.USED)
    assert at.is_used(0)
    assert struct.calcsize("<QIHH") == module.DESCRIPTOR.size
