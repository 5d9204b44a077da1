"""Whoever waits for an answer hears that there will be none."""

import asyncio
import os
from contextlib import closing

import pytest

from tests.conftest import Run
from tests.sessions import Echo, negotiated
from vhostd.errors import GuestError

PATIENCE = 20.0  # seconds for what takes milliseconds


def test_a_ring_that_breaks_is_not_waited_for(run_async: Run) -> None:
    async def main() -> None:
        async with negotiated(Echo()) as (frontend, memory):
            with closing(await frontend.start(memory)) as queue:
                assert await queue.request(b"good", room=4) == b"good"
                queue.add(b"bad", room=3)
                queue.driver.set_avail_index(1000)
                os.eventfd_write(queue.kick_fd.fileno(), 1)
                with pytest.raises(GuestError, match="the device has stopped ring 0, since it is broken"):
                    await asyncio.wait_for(queue.used(), PATIENCE)

    run_async(main)


def test_a_request_ends_with_the_connection(run_async: Run) -> None:
    async def main() -> None:
        async with negotiated(Echo()) as (frontend, memory):
            with (
                closing(await frontend.start(memory)) as queue,
                pytest.raises(ConnectionResetError, match="closed the connection"),
            ):
                await asyncio.wait_for(queue.request(b"!", room=1), PATIENCE)

    run_async(main)
