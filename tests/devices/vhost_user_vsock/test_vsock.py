"""The socket device, driven by a front-end over a socket pair, with the real session between."""

import asyncio
import random
from pathlib import Path

import pytest

from tests.conftest import Run
from tests.devices.vhost_user_vsock.rig import rig

PORT = 5000
SIZES = (1, 43, 44, 45, 4051, 4052, 4053, 65535, 65536, 65537, 300_000, 1 << 20)


def some_bytes(size: int) -> bytes:
    return random.Random(size).randbytes(size)


# --- Connections ----------------------------------------------------------------------------------------


def test_a_guest_reaches_a_server_of_the_host(tmp_path: Path, run_async: Run) -> None:
    async def main() -> None:
        async with rig(tmp_path) as there:
            server = there.serve(PORT)
            ours = await there.driver.connect(PORT)
            theirs = await there.accept(server)
            await ours.send(b"question")
            assert await there.receive(theirs) == b"question"
            await there.send(theirs, b"answer")
            assert await ours.receive() == b"answer"
            await ours.close()
            assert await there.receive(theirs) == b""

    run_async(main)


def test_a_client_of_the_host_reaches_the_guest(tmp_path: Path, run_async: Run) -> None:
    async def main() -> None:
        async with rig(tmp_path) as there:
            there.driver.listen(PORT)
            theirs = await there.client(b"CONNECT 5000\n")
            ours = await there.driver.accept(PORT)
            assert await there.receive(theirs) == b"OK %d\n" % ours.peer[1]
            await there.send(theirs, b"question")
            assert await ours.receive() == b"question"
            await ours.send(b"answer")
            assert await there.receive(theirs) == b"answer"
            theirs.close()
            assert await ours.receive() == b""
            await ours.close()

    run_async(main)


def test_a_port_where_nobody_listens_refuses(tmp_path: Path, run_async: Run) -> None:
    async def main() -> None:
        async with rig(tmp_path) as there:
            with pytest.raises(ConnectionRefusedError):
                await there.driver.connect(PORT)
            client = await there.client(b"CONNECT 5000\n")
            assert await there.receive(client) == b""

    run_async(main)


@pytest.mark.parametrize("size", SIZES)
def test_data_of_any_size_pass_both_ways(tmp_path: Path, run_async: Run, size: int) -> None:
    data = some_bytes(size)

    async def main() -> None:
        async with rig(tmp_path) as there:
            server = there.serve(PORT)
            ours = await there.driver.connect(PORT)
            theirs = await there.accept(server)
            _, received = await asyncio.gather(ours.send(data), there.receive_exactly(theirs, size))
            assert received == data
            _, received = await asyncio.gather(there.send(theirs, data), ours.receive_exactly(size))
            assert received == data
            await ours.close()

    run_async(main)
