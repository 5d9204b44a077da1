"""What was written to a file is there before the program ends."""

import asyncio
import os
import threading
from pathlib import Path

from tests.conftest import Run
from vhost_user_console.outlet import FileOutlet


def test_drained_waits_for_all_that_waits(tmp_path: Path, run_async: Run) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(fifo, os.O_WRONLY)
    os.set_blocking(reader, True)
    first, second = bytes(1 << 17), b"last words"

    async def main() -> None:
        outlet = FileOutlet("a file", keep=1 << 20, may_wait=False)
        outlet.open(writer)
        outlet.take(first)  # more than the fifo holds: this is written as the test reads it
        outlet.take(second)
        drained = asyncio.create_task(outlet.drained())
        await asyncio.sleep(0)
        assert not drained.done()
        threading.Thread(target=read).start()
        await drained
        os.close(writer)
        outlet.close()

    got = bytearray()

    def read() -> None:
        while piece := os.read(reader, 1 << 16):
            got.extend(piece)

    run_async(main)
    os.close(reader)
    assert got == first + second
