"""Any messages in any order.

Invariant: whatever a front-end sends, each message is answered as dispatch.py's table says, or the
connection ends with a logged FrontendError; no exception of another kind is raised, no fd, task or mapping
is left, and the device serves the next front-end.
"""

import asyncio
import logging
import os
import socket
import struct
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import Run
from tests.sessions import Echo, connected, negotiated
from vhostd.frontend import Frontend, SharedMemory
from vhostd.vhost_user.messages import REQUESTS
from vhostd.wire.fds import Fd
from vhostd.wire.framing import HEADER
from vhostd.wire.rows import Row

SMALL = st.integers(0, 3)
LARGE = st.sampled_from([0x100, 0x101, 8, 64, 1 << 16, 1 << 30, 0x1000_0000, (1 << 64) - 1])
NUMBERS = SMALL | LARGE
WORDS = st.lists(NUMBERS.map(struct.Struct("=Q").pack), max_size=6).map(b"".join)
HALVES = st.lists(NUMBERS.map(lambda number: struct.pack("=I", number & 0xFFFFFFFF)), max_size=6).map(
    b"".join
)
PAYLOADS = st.one_of(st.just(b""), WORDS, HALVES, st.binary(max_size=64))
FLAGS = st.sampled_from([1, 1, 1, 9, 9, 9, 5, 0, 2, 0x11])


@st.composite
def messages(draw: st.DrawFn) -> tuple[int, int, bytes, list[str]]:
    """Mostly well-formed messages: a request's number, flags, payload, and kinds of fds."""
    row: Row[Any, Any] | None = REQUESTS.get(draw(st.integers(0, 46)))
    kinds = st.sampled_from(["memory", "eventfd", "pipe", "socket", "folder"])
    if row is None or draw(st.integers(0, 7)) == 0:
        return draw(st.integers(0, 1 << 16)), draw(FLAGS), draw(PAYLOADS), draw(st.lists(kinds, max_size=3))
    size = getattr(row.payload, "SIZE", None)
    payload = draw(PAYLOADS) if size is None else draw(st.one_of(WORDS, HALVES)).ljust(size, b"\0")[:size]
    fds = draw(st.lists(kinds, min_size=row.fds[0], max_size=row.fds[-1]))
    return row.request, draw(FLAGS), payload, fds


def open_fd(kind: str, memory: SharedMemory) -> Fd:
    if kind == "memory":
        return Fd(os.dup(memory.fd.fileno()))
    if kind == "eventfd":
        return Fd(os.eventfd(0))
    if kind == "folder":
        return Fd(os.open("/", os.O_RDONLY))
    kept, other = socket.socketpair() if kind == "socket" else map(Fd, os.pipe())
    other.close()
    return Fd(kept.detach()) if isinstance(kept, socket.socket) else kept


async def send(frontend: Frontend, message: tuple[int, int, bytes, list[str]], memory: SharedMemory) -> None:
    request, flags, payload, kinds = message
    fds = [open_fd(kind, memory) for kind in kinds]
    try:
        data = HEADER.pack(request, flags, len(payload)) + payload
        await frontend.channel.send(data, tuple(fd.fileno() for fd in fds))
    finally:
        for fd in fds:
            fd.close()


async def drain(frontend: Frontend) -> None:
    """Reads what the session answers until it ends the connection."""
    while (message := await frontend.channel.receive()) is not None:
        message.close()


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(sequence=st.lists(messages(), max_size=12), greeted=st.booleans())
def test_any_messages_in_any_order(
    sequence: list[tuple[int, int, bytes, list[str]]],
    greeted: bool,  # noqa: FBT001 (Hypothesis passes it by name)
    run_async: Run,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        device = Echo()
        memory = SharedMemory(1 << 16)
        async with negotiated(device) if greeted else connected(device) as started:
            frontend = started[0] if isinstance(started, tuple) else started
            if greeted and isinstance(started, tuple):
                queue = await frontend.start(started[1], 0)
                queue.add(b"x", 1)
                queue.close()
            reading = asyncio.create_task(drain(frontend))
            try:
                for message in sequence:
                    await send(frontend, message, memory)
            except ConnectionError:
                pass
            frontend.channel._socket.shutdown(1)
            await reading
        memory.close()
        async with negotiated(device) as (frontend, memory):
            queue = await frontend.start(memory)
            assert await queue.request(b"next", 4) == b"next"
            queue.close()

    caplog.clear()
    run_async(main)
    faults = [record for record in caplog.records if record.exc_info or record.levelno > logging.ERROR]
    assert not faults
