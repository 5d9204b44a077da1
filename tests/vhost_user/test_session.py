"""One front-end's session, driven as a front-end does, in the same process."""

import asyncio
import os
import socket

import pytest

from tests.conftest import Run
from tests.sessions import Echo, negotiated, refused
from vhostd.frontend import Frontend, SharedMemory
from vhostd.vhost_user.messages import (
    FRONT_END,
    GET_FEATURES,
    GPU_SET_SOCKET,
)
from vhostd.vhost_user.session import DISCONNECT_PATIENCE, Session
from vhostd.virtio.leftovers import Leftovers
from vhostd.wire.channel import Channel
from vhostd.wire.fds import Fd
from vhostd.wire.rows import Empty


def test_a_device_that_shows_nothing_takes_no_gpu_socket(run_async: Run) -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        async with negotiated(Echo()) as (frontend, _):
            with ours, Fd(theirs.detach()) as fd:
                await refused(frontend.call(GPU_SET_SOCKET, Empty(), fd))
                fd.close()
                assert ours.recv(1) == b""

    run_async(main)


def test_a_gpu_socket_must_be_a_connected_one(run_async: Run) -> None:
    async def main() -> None:
        async with negotiated(Echo()) as (frontend, _):
            with socket.socket(socket.AF_UNIX) as unconnected, Fd(os.dup(unconnected.fileno())) as fd:
                await refused(frontend.call(GPU_SET_SOCKET, Empty(), fd))

    run_async(main)


def test_the_program_s_end_cuts_the_wait_for_requests_in_flight_short(run_async: Run) -> None:
    """It comes while the session waits for them because the front-end has gone; all is closed even so."""

    async def main() -> None:
        device = Echo()
        memory = SharedMemory(1 << 16)
        ours, theirs = socket.socketpair()
        serving = asyncio.create_task(Session(device, Channel(theirs, FRONT_END)).run())
        frontend = Frontend(ours)
        await frontend.negotiate()
        await frontend.share(memory)
        queue = await frontend.start(memory, 1)
        queue.add(b"x", 4)
        queue.kick()
        await device.holding.wait()
        frontend.close()
        await device.ended.wait()
        serving.cancel()
        await asyncio.wait([serving])
        assert serving.cancelled()
        assert theirs.fileno() == -1
        assert device.resets == 1
        device.release()  # too late: nobody hears of it
        assert queue.poll() is None
        queue.close()
        memory.close()

    run_async(main)


@pytest.mark.parametrize("early", [True, False], ids=["before the end", "during it"])
def test_who_wants_to_be_served_next_need_not_wait_for_requests_that_hang(
    run_async: Run, *, early: bool
) -> None:
    """They are left behind, and their ring stops, long before a session's patience with its device ends."""

    async def main() -> None:
        device, leftovers = Echo(), Leftovers()
        memory = SharedMemory(1 << 16)
        ours, theirs = socket.socketpair()
        session = Session(device, Channel(theirs, FRONT_END), leftovers=leftovers)
        serving = asyncio.create_task(session.run())
        frontend = Frontend(ours)
        await frontend.negotiate()
        await frontend.share(memory)
        queue = await frontend.start(memory, 1)
        queue.add(b"x", 4)
        queue.kick()
        await device.holding.wait()
        if early:
            session.hurry()
            await frontend.call(GET_FEATURES, Empty())  # it is served on
            assert not device.held[0].given_up
        frontend.close()
        await device.ended.wait()
        if not early:
            session.hurry()
        async with asyncio.timeout(DISCONNECT_PATIENCE / 2):
            await serving
        assert device.held[0].given_up
        assert leftovers.requests == 1
        device.release()
        await leftovers.gone()
        assert queue.poll() is None
        queue.close()
        memory.close()

    run_async(main)
