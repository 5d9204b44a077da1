"""What one side sends is what the other gets: bytes, fds, order, ends."""

import asyncio
import os
import random
import socket
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import Run
from tests.trace.ends import put, take, traced
from vhostd.vhost_user.messages import ADD_MEM_REG, GET_FEATURES, SET_CONFIG, SET_MEM_TABLE, SET_OWNER
from vhostd.wire.fds import close_all
from vhostd.wire.framing import HEADER, NEED_REPLY, REPLY, VERSION

MAX = 1 << 32
HELLO = HEADER.pack(SET_OWNER.request, VERSION, 0)


def message(request: int, payload: bytes = b"", flags: int = VERSION) -> bytes:
    return HEADER.pack(request, flags, len(payload)) + payload


def same_file(one: int, other: int) -> bool:
    return os.path.sameopenfile(one, other)


def test_bytes_and_fds_in_both_directions(run_async: Run) -> None:
    async def main() -> None:
        reading, writing = os.pipe()
        async with traced() as both:
            table = message(SET_MEM_TABLE.request, bytes(8), VERSION | NEED_REPLY)
            await put(both.front, table, *[reading] * 8)
            data, fds = await take(both.back, len(table))
            assert data == table
            assert len(fds) == 8
            assert all(same_file(fd.fileno(), reading) for fd in fds)
            close_all(fds)
            reply = message(31, bytes(24), VERSION | REPLY)
            await put(both.back, reply, writing)
            data, (fd,) = await take(both.front, len(reply))
            assert data == reply
            assert same_file(fd.fileno(), writing)
            fd.close()
        assert [(each.name, each.request, each.sender) for each in both.messages] == [
            ("", SET_MEM_TABLE.request, "front-end"),
            ("", 31, "back-end"),
        ]
        assert [each.kind for each in both.messages[0].fds] == ["read pipe"] * 8
        os.close(reading)
        os.close(writing)

    run_async(main)


def test_each_message_keeps_its_fds(run_async: Run) -> None:
    """However many messages come in one read."""

    async def main() -> None:
        pipes = [os.pipe() for _ in range(3)]
        region = message(ADD_MEM_REG.request, bytes(40))
        async with traced() as both:
            for reading, _ in pipes:
                await put(both.front, HELLO)
                await put(both.front, region, reading)
            for reading, _ in pipes:
                assert await take(both.back, len(HELLO)) == (HELLO, [])
                _, (fd,) = await take(both.back, len(region))
                assert same_file(fd.fileno(), reading)
                fd.close()
        for pair in pipes:
            for number in pair:
                os.close(number)

    run_async(main)


def test_dribbled_bytes_arrive_as_they_come(run_async: Run) -> None:
    """A header waits until it is whole; a payload waits for nothing."""

    async def main() -> None:
        async with traced() as both:
            config = message(SET_CONFIG.request, b"abc")
            for i in range(len(config)):
                await put(both.front, config[i : i + 1])
                if i + 1 < HEADER.size:
                    assert not both.told
                elif i + 1 == HEADER.size:
                    assert await take(both.back, HEADER.size) == (config[: HEADER.size], [])
                else:
                    assert await take(both.back, 1) == (config[i : i + 1], [])
        assert [each.payload for each in both.messages] == [b"abc"]

    run_async(main)


def test_a_message_in_one_write_is_one_read(run_async: Run) -> None:
    async def main() -> None:
        async with traced() as both:
            config = message(SET_CONFIG.request, bytes(200))
            await put(both.front, config)
            loop = asyncio.get_running_loop()
            both.back.setblocking(False)
            assert await loop.sock_recv(both.back, 4096) == config

    run_async(main)


def test_a_large_payload_goes_through_though_nobody_reads_for_a_while(run_async: Run) -> None:
    async def main() -> None:
        async with traced() as both:
            large = message(8, random.Random(1).randbytes(4 << 20))
            sending = asyncio.create_task(put(both.front, large))
            await put(both.back, HELLO)  # the other direction goes on meanwhile
            assert await take(both.front, len(HELLO)) == (HELLO, [])
            assert await take(both.back, len(large)) == (large, [])
            await sending
        assert [(each.size, len(each.payload)) for each in both.messages if each.request == 8] == [
            (4 << 20, 8)
        ]

    run_async(main)


@pytest.mark.parametrize(
    "flags", [0, 2, VERSION | 0x10, 0xFFFF_FFFF], ids=["no version", "version 2", "reserved", "all"]
)
def test_what_is_no_message_is_passed_on_as_it_was(run_async: Run, flags: int) -> None:
    async def main() -> None:
        reading, writing = os.pipe()
        async with traced() as both:
            noise = message(77, b"whatever", flags) + b"more"
            await put(both.front, HELLO + noise, reading)
            data, fds = await take(both.back, len(HELLO + noise))
            assert data == HELLO + noise
            assert len(fds) == 1
            close_all(fds)
            await put(both.back, message(1, bytes(8), VERSION | REPLY))
            await take(both.front, 20)
        assert len(both.messages) == 2
        (note,) = both.notes
        assert note.startswith("what the front-end sends: no message begins with 4d000000")
        os.close(reading)
        os.close(writing)

    run_async(main)


def test_a_half_close_is_passed_on(run_async: Run) -> None:
    async def main() -> None:
        async with traced() as both:
            await put(both.front, HELLO + b"12345")
            both.front.shutdown(socket.SHUT_WR)
            assert await take(both.back, 100) == (HELLO + b"12345", [])
            reply = message(1, bytes(8), VERSION | REPLY)
            await put(both.back, reply)
            assert await take(both.front, len(reply)) == (reply, [])
            both.back.close()
            assert await take(both.front, 1) == (b"", [])
        assert both.notes == ["what the front-end sends: ends in the middle of a message"]

    run_async(main)


@pytest.mark.parametrize("unread", [b"", HELLO], ids=["all read", "unread"])
def test_whoever_goes_is_gone_for_the_other_too(run_async: Run, unread: bytes) -> None:
    async def main() -> None:
        async with traced() as both:
            await put(both.front, HELLO)
            await take(both.back, len(HELLO))
            await put(both.front, unread)
            both.back.close()
            assert await take(both.front, 1) == (b"", [])
            await until_refused(both.front)

    run_async(main)


async def until_refused(sock: socket.socket) -> None:
    """Sends until nobody takes it any more."""
    with suppress(ConnectionError):
        while True:
            await put(sock, HELLO)


PIECES = st.lists(
    st.tuples(
        st.one_of(
            st.builds(message, st.integers(0, 50), st.binary(max_size=60), st.sampled_from([1, 5, 9])),
            st.binary(max_size=30),
        ),
        st.integers(0, 3),
    ),
    max_size=8,
)


@settings(max_examples=40)
@given(PIECES)
def test_nothing_is_changed_whatever_is_sent(pieces: list[tuple[bytes, int]]) -> None:
    """As many fds, in their order, and the same bytes."""
    sent = b"".join(data for data, _ in pieces)
    count = sum(fds for data, fds in pieces if data)

    async def main() -> None:
        async with traced() as both:
            for data, fds in pieces:
                if data:
                    await put(both.front, data, *[0] * fds)
            both.front.shutdown(socket.SHUT_WR)
            data, received = await take(both.back, MAX)
            close_all(received)
            assert data == sent
            assert len(received) == count

    asyncio.run(main())


def test_a_message_is_told_before_its_answer(run_async: Run) -> None:
    async def main() -> None:
        async with traced() as both:
            for _ in range(20):
                await put(both.front, message(GET_FEATURES.request))
                await take(both.back, HEADER.size)
                await put(both.back, message(GET_FEATURES.request, bytes(8), VERSION | REPLY))
                await take(both.front, HEADER.size + 8)
        assert [each.sender for each in both.messages] == ["front-end", "back-end"] * 20

    run_async(main)
