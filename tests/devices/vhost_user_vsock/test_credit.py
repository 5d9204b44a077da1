"""Credit: the guest hears of room before it has to stop, and the host's end goes on when the guest has it."""

import asyncio
import socket
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Run
from tests.devices.vhost_user_vsock.rig import rig
from vhostd.frontend.drivers.vsock import (
    CREDIT_UPDATE,
    SEQPACKET,
    SHUTDOWN,
    SHUTDOWN_SEND,
    VsockConnection,
)

PORT = 5000
BUFFER = 1 << 18  # the device's


@pytest.mark.parametrize("own", [BUFFER // 2, BUFFER // 4, 1 << 12])
def test_a_guest_that_keeps_less_hears_of_room_in_time(tmp_path: Path, run_async: Run, own: int) -> None:
    """Linux sends no more than its own socket keeps."""

    async def main() -> None:
        async with rig(tmp_path) as there:
            server = there.serve(PORT)
            ours = await there.driver.connect(PORT)
            theirs = await there.accept(server)
            ours.buf_alloc = own
            sending = asyncio.create_task(ours.send(bytes(2 * BUFFER)))
            assert await there.receive_exactly(theirs, 2 * BUFFER) == bytes(2 * BUFFER)
            await sending

    run_async(main)


def test_a_part_of_a_message_is_not_the_last(tmp_path: Path, run_async: Run) -> None:
    """The first message is delivered, and was told nobody; the second one has no room without that."""
    sizes = (100_000, 200_000)

    async def main() -> None:
        async with rig(tmp_path) as there:
            server = there.serve(PORT, socket.SOCK_SEQPACKET)
            ours = await there.driver.connect(PORT, kind=SEQPACKET)
            theirs = await there.accept(server)
            for size in sizes:
                sending = asyncio.create_task(ours.send(bytes(size)))
                assert await there.receive(theirs, BUFFER) == bytes(size)
                await sending

    run_async(main)


@pytest.mark.parametrize("op", [SHUTDOWN, CREDIT_UPDATE])
def test_any_packet_with_credit_lets_the_host_go_on(tmp_path: Path, run_async: Run, op: int) -> None:
    size = 3 * 1000

    async def main() -> None:
        async with rig(tmp_path) as there:
            server = there.serve(PORT)
            ours = await there.driver.connect(PORT)
            theirs = await there.accept(server)
            ours.buf_alloc = 1000
            await ours.tell(CREDIT_UPDATE)
            asked = asyncio.Event()

            def no_answer(sending: Coroutine[Any, Any, None]) -> None:
                sending.close()
                asked.set()

            ours._driver.later = no_answer  # type: ignore[method-assign]
            await there.send(theirs, bytes(size))
            await ours.until(lambda: ours._held == 1000)
            await asked.wait()  # for credit, and there is none
            take_all(ours)
            await ours.tell(op, SHUTDOWN_SEND)
            await ours.until(lambda: ours._held == 1000)

    run_async(main)


def take_all(connection: VsockConnection) -> None:
    """The application reads all that has come, and nobody is told."""
    connection._forwarded += connection._held
    connection._held = 0
    connection._arrived.clear()
