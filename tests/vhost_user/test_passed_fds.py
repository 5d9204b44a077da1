"""Whatever fds a front-end passes, and does to them afterwards, a program answers messages and ends."""

import asyncio
import os
import select
import socket
from collections.abc import AsyncIterator, Coroutine
from contextlib import ExitStack, asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.floods import BLK, GPU, VICTIMS, Victim
from tests.programs import Program, connect, connected, executable, get_features, listening
from vhostd.errors import RefusedRequest
from vhostd.frontend import Frontend, Queue, SharedMemory
from vhostd.vhost_user.messages import (
    FRONT_END,
    GET_FEATURES,
    GPU_SET_SOCKET,
    SET_BACKEND_REQ_FD,
    SET_VRING_CALL,
    SET_VRING_ERR,
    SET_VRING_KICK,
    VringFd,
)
from vhostd.wire.fds import Fd
from vhostd.wire.rows import Empty, Row

PATIENCE = 20.0  # seconds that a program may take to answer
FULL = (1 << 64) - 2  # the most that an eventfd holds
ALL = (*VICTIMS, BLK)


def run(main: Coroutine[None, None, None]) -> None:
    asyncio.run(asyncio.wait_for(main, PATIENCE))


class Served:
    """A program with a front-end that has started a ring."""

    def __init__(self, program: Program, frontend: Frontend, queue: Queue, victim: Victim) -> None:
        self.program = program
        self.frontend = frontend
        self.queue = queue
        self.victim = victim

    def request(self) -> None:
        """Gives it something to do that ends with a signal of the call fd."""
        self.queue.add(self.victim.data, self.victim.room)
        os.eventfd_write(self.queue.kick_fd.fileno(), 1)

    async def is_well(self) -> None:
        """It answers, and ends when told to."""
        await self.frontend.call(GET_FEATURES, Empty())
        self.program.stop()


@asynccontextmanager
async def served(victim: Victim, folder: Path) -> AsyncIterator[Served]:
    path = folder / "vhost.sock"
    command = [executable(victim.name), *(option.format(folder=folder) for option in victim.options)]
    with ExitStack() as stack:
        program = stack.enter_context(listening(command, path))
        frontend = stack.enter_context(closing(Frontend(connect(path))))
        memory = stack.enter_context(closing(SharedMemory(16 << 20)))
        await frontend.negotiate()
        await frontend.share(memory)
        queue = stack.enter_context(closing(await frontend.start(memory, victim.ring)))
        yield Served(program, frontend, queue, victim)


@pytest.mark.parametrize("victim", ALL, ids=lambda victim: victim.name)
def test_a_call_eventfd_that_is_full_and_would_wait(victim: Victim, tmp_path: Path) -> None:
    async def main() -> None:
        async with served(victim, tmp_path) as it:
            with Fd(os.eventfd(0)) as call:
                os.eventfd_write(call.fileno(), FULL)
                await it.frontend.call(SET_VRING_CALL, VringFd(victim.ring), call)
                os.set_blocking(call.fileno(), True)
                it.request()
                await it.is_well()

    run(main())


@pytest.mark.parametrize("kind", ["socket", "pipe"])
def test_a_call_fd_that_nobody_reads(kind: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with served(BLK, tmp_path) as it:
            reader, writer = _pair(kind)
            with reader, writer:
                await it.frontend.call(SET_VRING_CALL, VringFd(BLK.ring), writer)
                os.set_blocking(writer.fileno(), False)
                with suppress(BlockingIOError):
                    while True:
                        os.write(writer.fileno(), bytes(4096))
                with suppress(BlockingIOError):
                    while True:
                        os.write(writer.fileno(), b"\0")
                os.set_blocking(writer.fileno(), True)
                it.request()
                await it.is_well()

    run(main())


@pytest.mark.parametrize("kind", ["socket", "pipe"])
def test_other_fds_than_eventfds_notify_under_the_sandbox(kind: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with served(BLK, tmp_path) as it:
            kicked, kick = _pair(kind)
            called, call = _pair(kind)
            with kicked, kick, called, call:
                await it.frontend.call(SET_VRING_CALL, VringFd(BLK.ring), call)
                await it.frontend.call(SET_VRING_KICK, VringFd(BLK.ring), kicked)
                it.queue.add(BLK.data, BLK.room)
                os.write(kick.fileno(), b"\1")
                while it.queue.poll() is None:
                    assert os.read(called.fileno(), 4096)
                await it.is_well()

    run(main())


def _pair(kind: str) -> tuple[Fd, Fd]:
    """An end to read from, and one to write to."""
    if kind == "pipe":
        reader, writer = os.pipe()
        return Fd(reader), Fd(writer)
    ours, theirs = socket.socketpair()
    return Fd(ours.detach()), Fd(theirs.detach())


@pytest.mark.parametrize("victim", ALL, ids=lambda victim: victim.name)
def test_a_connection_whose_flags_others_change(victim: Victim, tmp_path: Path) -> None:
    command = [executable(victim.name), *(option.format(folder=tmp_path) for option in victim.options)]
    ours, theirs = socket.socketpair()
    with ours, theirs, Program([*command, f"--fd={theirs.fileno()}"], fds=[theirs.fileno()]) as program:
        get_features(ours)
        theirs.setblocking(True)
        ours.sendall(FRONT_END.encode(GET_FEATURES.request, Empty())[:5])
        # There is nobody to tell when a part of a message was read, but the next part is soon enough.
        ours.sendall(FRONT_END.encode(GET_FEATURES.request, Empty())[5:])
        ours.settimeout(PATIENCE)
        ours.recv(4096)
        program.stop()


def test_a_display_socket_with_half_an_answer(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(GPU, tmp_path) as it:
            ours, theirs = socket.socketpair()
            with ours, theirs:
                with Fd(os.dup(theirs.fileno())) as passed:
                    await it.frontend.call(GPU_SET_SOCKET, Empty(), passed)
                theirs.setblocking(True)
                ours.settimeout(PATIENCE)
                assert ours.recv(4096)  # it asks something
                ours.send(b"\1")
                while select.select([theirs], [], [], 0)[0]:
                    await asyncio.sleep(0)
                await it.is_well()

    run(main())


@pytest.mark.parametrize(
    ("row", "victim"),
    [
        (SET_VRING_CALL, BLK),
        (SET_VRING_ERR, BLK),
        (SET_VRING_KICK, BLK),
        (SET_BACKEND_REQ_FD, BLK),
        (GPU_SET_SOCKET, GPU),
    ],
    ids=lambda value: str(value) if isinstance(value, Row) else value.name,
)
def test_a_front_end_that_passes_its_own_end_of_the_connection(
    row: Row[Any, None], victim: Victim, tmp_path: Path
) -> None:
    """Whoever has that open would never see it go."""

    async def main() -> None:
        async with served(victim, tmp_path) as it:
            payload = Empty() if row in (SET_BACKEND_REQ_FD, GPU_SET_SOCKET) else VringFd(victim.ring)
            own = Fd(os.dup(it.frontend.channel._socket.fileno()))
            with own, pytest.raises((RefusedRequest, ConnectionError)):
                await it.frontend.call(row, payload, own)
            it.frontend.close()
            with connect(tmp_path / "vhost.sock") as sock:
                get_features(sock)
            it.program.stop()

    run(main())


def test_the_same_where_the_connection_was_handed_over() -> None:
    """A pair of sockets has no names at all."""

    async def main() -> None:
        with connected([executable("vhost-user-rng")]) as (program, sock):
            frontend = Frontend(sock.dup())
            await frontend.negotiate()
            with Fd(os.dup(sock.fileno())) as own, pytest.raises(RefusedRequest):
                await frontend.call(SET_VRING_CALL, VringFd(0), own)
            frontend.close()
            sock.close()
            assert program.wait() == 0

    run(main())


def test_an_fd_that_only_names_a_socket_costs_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(BLK, tmp_path) as it:
            before = len(it.program.fds())
            with socket.socket(socket.AF_UNIX) as sock:
                for _ in range(3):
                    with (
                        Fd(os.open(f"/proc/self/fd/{sock.fileno()}", os.O_PATH)) as named,
                        pytest.raises(RefusedRequest),
                    ):
                        await it.frontend.call(SET_VRING_CALL, VringFd(BLK.ring), named)
            assert len(it.program.fds()) == before
            await it.is_well()

    run(main())
