"""Programs, sandboxed as ever, whose guest's memory comes late, or never."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from tests.conftest import Run
from tests.programs import Program, executable, listening
from vhostd.frontend import Frontend, Postcopy, Queue, SharedMemory
from vhostd.frontend.memory import PAGE
from vhostd.vhost_user.messages import GET_FEATURES
from vhostd.wire.rows import Empty

BLK = [executable("vhost-user-blk"), "--offer=default,pagefault"]
SECTORS = 64
READ, WRITE = 0, 1


class Disk:
    """A disk of a real program, and its driver, whose buffers are pages of their own."""

    def __init__(self, frontend: Frontend, memory: SharedMemory, incoming: Postcopy, queue: Queue) -> None:
        self.frontend = frontend
        self.memory = memory
        self.incoming = incoming
        self._queue = queue

    def begin(self, kind: int, sector: int, data: bytes, *, late: bool = True) -> int:
        """Begins a request, all pages of which are missing if they come `late`; the address of its data."""
        header, status = self.memory.allocate(PAGE, PAGE), self.memory.allocate(PAGE, PAGE)
        where = self.memory.allocate(len(data), PAGE)
        self.memory.map.write(header, kind.to_bytes(8, "little") + sector.to_bytes(8, "little"))
        self.memory.map.write(where, data)
        self.memory.map.write(status, b"\xff")
        if late:
            for addr, size in ((header, 16), (where, len(data)), (status, 1)):
                self.incoming.take(self.memory, addr, size)
        self._queue.driver.add([(header, 16, False), (where, len(data), kind == READ), (status, 1, True)])
        self._queue.kick()
        return where

    async def done(self) -> None:
        """Waits until a request is done."""
        while self._queue.driver.used() is None:
            await asyncio.sleep(0)


@asynccontextmanager
async def disk(path: Path) -> AsyncIterator[Disk]:
    """A disk, whose guest is arriving."""
    with closing(SharedMemory(4 << 20)) as memory, closing(await Frontend.connect(str(path))) as frontend:
        await frontend.negotiate()
        incoming = Postcopy(frontend)
        with closing(incoming):
            await incoming.advise()
            await incoming.listen()
            await incoming.share(memory)
            with closing(await frontend.start(memory)) as queue:
                yield Disk(frontend, memory, incoming, queue)


@pytest.mark.parametrize("aio", ["sync", "threads", "io_uring"])
def test_what_was_written_is_read(aio: str, tmp_path: Path, run_async: Run) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(SECTORS * 512))
    command = [*BLK, f"--blk-file={image}", f"--aio={aio}"]

    async def main() -> None:
        async with disk(tmp_path / "socket") as arriving:
            text = os.urandom(2 * PAGE)
            arriving.begin(WRITE, 8, text)
            await arriving.done()
            assert image.read_bytes()[8 * 512 :][: len(text)] == text
            where = arriving.begin(READ, 8, bytes(2 * PAGE))
            await arriving.done()
            assert arriving.memory.map.read(where, 2 * PAGE) == text
            await arriving.incoming.end()
            where = arriving.begin(READ, 8, bytes(2 * PAGE), late=False)
            await arriving.done()
            assert arriving.memory.map.read(where, 2 * PAGE) == text

    with listening(command, tmp_path / "socket") as program:
        run_async(main)
        program.stop()


async def waiting(arriving: Disk) -> None:
    """Has the disk wait for a page, while it answers messages."""
    arriving.incoming.brings = False
    arriving.begin(READ, 0, bytes(PAGE))
    await arriving.incoming.faulted.wait()
    await arriving.frontend.call(GET_FEATURES, Empty())


def test_a_program_that_waits_for_a_page_can_be_ended(tmp_path: Path, run_async: Run) -> None:
    async def main(program: Program) -> None:
        async with disk(tmp_path / "socket") as arriving:
            await waiting(arriving)
            program.send(signal.SIGTERM)
            assert await asyncio.to_thread(program.wait) == 0

    with listening([*BLK, "--ram=1M"], tmp_path / "socket") as program:
        run_async(lambda: main(program))


def test_a_program_outlives_a_front_end_that_goes_without_a_word(tmp_path: Path, run_async: Run) -> None:
    async def main() -> None:
        for _ in range(3):
            async with disk(tmp_path / "socket") as arriving:
                await waiting(arriving)
        async with disk(tmp_path / "socket") as arriving:
            arriving.begin(READ, 0, bytes(PAGE))
            await arriving.done()

    with listening([*BLK, "--ram=1M"], tmp_path / "socket") as program:
        run_async(main)
        program.until(lambda _: not any("userfaultfd" in name for name in program.fds().values()))
        program.stop()
