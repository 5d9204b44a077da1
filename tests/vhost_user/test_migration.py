"""The dirty log: which pages the device has written, for a front-end that migrates the guest."""

import os
from contextlib import closing

import pytest

from tests.conftest import Run
from tests.sessions import Echo, negotiated
from vhostd.frontend import Frontend, Queue, SharedMemory
from vhostd.vhost_user.messages import SET_FEATURES, SET_LOG_BASE, SET_LOG_FD, Log
from vhostd.virtio.vocabulary import Feature, mask
from vhostd.wire.fds import Fd
from vhostd.wire.rows import U64, Empty

PAGE = 4096
LOG_ALL = mask(Feature.LOG_ALL)
FEATURES = mask(Feature.VERSION_1, Feature.INDIRECT_DESC, Feature.PROTOCOL_FEATURES)


class SharedLog:
    """A log that covers a memory, in a file; `offset` bytes of the file lie before it."""

    def __init__(self, memory: SharedMemory, offset: int = 0) -> None:
        self.fd = Fd(os.memfd_create("log", os.MFD_CLOEXEC))
        self.place = Log(least(memory), offset)
        os.ftruncate(self.fd.fileno(), offset + self.place.mmap_size)

    def pages(self) -> set[int]:
        """The guest addresses of the pages that are logged."""
        content = os.pread(self.fd.fileno(), self.place.mmap_size, self.place.mmap_offset)
        return {
            (byte * 8 + bit) * PAGE
            for byte, bits in enumerate(content)
            for bit in range(8)
            if bits >> bit & 1
        }

    def clear(self) -> None:
        """Takes all bits away."""
        os.pwrite(self.fd.fileno(), bytes(self.place.mmap_size), self.place.mmap_offset)


def least(memory: SharedMemory) -> int:
    """The bytes of the shortest log of a memory."""
    return (memory.guest_addr + memory.size - 1) // PAGE // 8 + 1


def content(memory: SharedMemory) -> bytes:
    return memory.map.read(memory.guest_addr, memory.size)


async def switch(frontend: Frontend, *, on: bool) -> None:
    """Switches logging on or off, as QEMU does while rings run."""
    await frontend.call(SET_FEATURES, U64(frontend.features | (LOG_ALL if on else 0)))


async def written_by(queue: Queue, memory: SharedMemory, size: int) -> set[int]:
    """Has so many bytes echoed; the guest addresses of the pages that have changed by it."""
    text = b"e" + os.urandom(size - 1)  # "!" would be a command
    queue.add(text, size)
    before = content(memory)
    queue.kick()
    assert (await queue.used())[1] == text
    now = content(memory)
    starts = range(0, memory.size, PAGE)
    return {memory.guest_addr + at for at in starts if now[at : at + PAGE] != before[at : at + PAGE]}


@pytest.mark.parametrize("packed", [0, mask(Feature.RING_PACKED)], ids=["split", "packed"])
@pytest.mark.parametrize("offset", [0, PAGE, 1000])
def test_what_changes_is_logged_while_logging_is_on(offset: int, packed: int, run_async: Run) -> None:
    async def main() -> None:
        async with negotiated(Echo(), FEATURES | packed) as (frontend, memory):
            with closing(await frontend.start(memory)) as queue:
                log = SharedLog(memory, offset)
                with log.fd:
                    await frontend.call(SET_LOG_BASE, log.place, log.fd)
                    await written_by(queue, memory, 100)
                    assert log.pages() == set()
                    await switch(frontend, on=True)
                    for size in (1, 100, PAGE, 3 * PAGE, 40 * PAGE):
                        assert await written_by(queue, memory, size) == log.pages()
                        log.clear()
                    await switch(frontend, on=False)
                    await written_by(queue, memory, 100)
                    assert log.pages() == set()

    run_async(main)


def test_a_ring_that_starts_later_and_another_log(run_async: Run) -> None:
    async def main() -> None:
        async with negotiated(Echo(), FEATURES) as (frontend, memory):
            first, second = SharedLog(memory), SharedLog(memory)
            with first.fd, second.fd:
                await switch(frontend, on=True)
                await frontend.call(SET_LOG_BASE, first.place, first.fd)
                with closing(await frontend.start(memory)) as queue:
                    assert await written_by(queue, memory, 100) == first.pages()
                    first.clear()
                    await frontend.call(SET_LOG_BASE, second.place, second.fd)
                    assert await written_by(queue, memory, 100) == second.pages()
                    assert first.pages() == set()

    run_async(main)


def test_a_log_of_just_the_memory_s_size(run_async: Run) -> None:
    async def main() -> None:
        async with negotiated(Echo(), FEATURES) as (frontend, memory):
            log = SharedLog(memory)
            with log.fd:
                await frontend.call(SET_LOG_BASE, Log(least(memory), 0), log.fd)

    run_async(main)


@pytest.mark.parametrize("place", [Log(1, 0), Log(1 << 40, 0), Log(1 << 20, 1 << 63), Log(0, 0)], ids=str)
def test_a_log_that_is_too_short_or_not_there(place: Log, run_async: Run) -> None:
    """Its reply cannot say no, and without it pages would be lost unseen: so the connection is closed."""

    async def main() -> None:
        async with negotiated(Echo(), FEATURES) as (frontend, memory):
            log = SharedLog(memory)
            with log.fd, pytest.raises(ConnectionError):
                await frontend.call(SET_LOG_BASE, place, log.fd)

    run_async(main)


def test_a_log_that_is_one_byte_too_short(run_async: Run) -> None:
    async def main() -> None:
        async with negotiated(Echo(), FEATURES) as (frontend, memory):
            log = SharedLog(memory)
            with log.fd, pytest.raises(ConnectionError):
                await frontend.call(SET_LOG_BASE, Log(least(memory) - 1, 0), log.fd)

    run_async(main)


def test_a_log_that_is_no_file(run_async: Run) -> None:
    async def main() -> None:
        async with negotiated(Echo(), FEATURES) as (frontend, memory):
            with Fd(os.eventfd(0)) as no_file, pytest.raises(ConnectionError):
                await frontend.call(SET_LOG_BASE, Log(least(memory), 0), no_file)

    run_async(main)


def test_memory_behind_the_log_s_end_is_served_all_the_same(run_async: Run) -> None:
    async def main() -> None:
        async with negotiated(Echo(), FEATURES) as (frontend, memory):
            log, higher = SharedLog(memory), SharedMemory(1 << 20, guest_addr=1 << 40, user_addr=1 << 45)
            with log.fd:
                await frontend.call(SET_LOG_BASE, log.place, log.fd)
                await switch(frontend, on=True)
                await frontend.add(higher)
                with closing(await frontend.start(higher)) as queue:
                    await written_by(queue, higher, 100)
                    assert log.pages() == set()
            higher.close()

    run_async(main)


def test_a_log_that_shrinks_ends_nothing_but_itself(run_async: Run) -> None:
    async def main() -> None:
        async with negotiated(Echo(), FEATURES) as (frontend, memory):
            with closing(await frontend.start(memory)) as queue:
                log = SharedLog(memory)
                with log.fd:
                    await frontend.call(SET_LOG_BASE, log.place, log.fd)
                    await switch(frontend, on=True)
                    os.ftruncate(log.fd.fileno(), 0)
                    await written_by(queue, memory, 100)
                    assert await queue.request(b"still there", room=11) == b"still there"

    run_async(main)


def test_an_fd_that_is_told_of_changes(run_async: Run) -> None:
    """It is taken, and nothing is told: no front-end waits for it."""

    async def main() -> None:
        async with negotiated(Echo(), FEATURES) as (frontend, memory):
            with Fd(os.eventfd(0)) as changes:
                await frontend.call(SET_LOG_FD, Empty(), changes)
            with closing(await frontend.start(memory)) as queue:
                await written_by(queue, memory, 100)

    run_async(main)
