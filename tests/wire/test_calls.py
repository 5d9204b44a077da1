"""Whoever asks over a channel gets the reply to his own question, or hears that there is none."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.conftest import Run
from vhostd.errors import MalformedMessage, RefusedRequest
from vhostd.wire.calls import Caller, answer, answer_with_fds, by_number
from vhostd.wire.channel import Channel
from vhostd.wire.fds import Fd
from vhostd.wire.framing import Dialect, Message
from vhostd.wire.rows import ONE_FD, U64, Empty, Row, rows_of

PATIENCE = 20.0  # seconds for what takes none: it only bounds how long a fault is waited for
NAME = Row(1, Empty, reply=U64, refusal=U64(666))
AGE = Row(2, U64, reply=U64)
FILE = Row(3, Empty, reply=Empty, reply_fds=ONE_FD)
SHOUT = Row(4, U64)
DIALECT = Dialect(rows_of(vars()), version=0)  # of a protocol that is nobody's


@asynccontextmanager
async def asking() -> AsyncIterator[tuple[Caller, Channel]]:
    """Who asks, while somebody listens to the replies, and the other end."""
    ours, theirs = socket.socketpair()
    channel, peer = Channel(ours, DIALECT, replies=True), Channel(theirs, DIALECT)
    caller = Caller(channel)
    listening = asyncio.create_task(caller.listen())
    try:
        yield caller, peer
    finally:
        listening.cancel()
        await asyncio.wait([listening])
        listening.cancelled() or listening.exception()
        peer.close()
        channel.close()


async def hear(peer: Channel) -> Message:
    message = await peer.receive()
    assert message is not None
    return message


async def reply(peer: Channel, row: Row[Any, Any], value: int, *fds: int) -> None:
    await peer.send(DIALECT.encode(row.request, U64(value), reply=True), fds)


def test_replies_come_in_the_order_of_the_questions(run_async: Run) -> None:
    async def main() -> None:
        async with asking() as (caller, peer):
            answers = [await caller.ask(AGE, U64(number)) for number in range(3)]
            for number in range(3):
                assert (await hear(peer)).payload == U64(number).pack()
                await reply(peer, AGE, number + 10)
            assert [(await answered).payload.value for answered in answers] == [10, 11, 12]

    run_async(main)


def test_the_row_s_refusal_is_an_exception_and_the_next_reply_is_none(run_async: Run) -> None:
    async def main() -> None:
        async with asking() as (caller, peer):
            refused, taken = await caller.ask(NAME, Empty()), await caller.ask(NAME, Empty())
            await reply(peer, NAME, 666)
            await reply(peer, NAME, 5)
            with pytest.raises(RefusedRequest, match="NAME was refused"):
                await refused
            assert (await taken).payload == U64(5)

    run_async(main)


@pytest.mark.parametrize("fds", [1, 0, 2])
def test_the_fds_of_a_reply_are_for_who_asked(fds: int, run_async: Run) -> None:
    async def main() -> None:
        async with asking() as (caller, peer):
            answered = await caller.ask(FILE, Empty())
            await hear(peer)
            await peer.send(DIALECT.encode(FILE.request, Empty(), reply=True), (0,) * fds)
            if fds == 1:
                (fd,) = (await answered).fds
                with fd:
                    assert os.fstat(fd.fileno()) == os.fstat(0)
            else:
                with pytest.raises(MalformedMessage, match=f"the reply to FILE has {fds} fds"):
                    await answered

    run_async(main)


def test_the_fds_of_a_question_stay_the_caller_s(run_async: Run) -> None:
    row = Row(SHOUT.request, Empty, fds=ONE_FD)

    async def main() -> None:
        async with asking() as (caller, peer):
            with Fd(os.dup(0)) as fd:
                await caller.tell(row, Empty(), [fd])
                message = await hear(peer)
                assert (len(message.fds), bool(fd)) == (1, True)
                message.close()

    run_async(main)


def test_an_ack_that_nobody_wanted_is_ignored(run_async: Run) -> None:
    async def main() -> None:
        async with asking() as (caller, peer):
            await caller.tell(SHOUT, U64(1))
            answered = await caller.ask(AGE, U64(1))
            await reply(peer, SHOUT, 0)
            await reply(peer, AGE, 33)
            assert (await answered).payload == U64(33)

    run_async(main)


def test_a_reply_to_something_else_ends_it_for_all(run_async: Run) -> None:
    async def main() -> None:
        async with asking() as (caller, peer):
            answers = [await caller.ask(AGE, U64(1)), await caller.ask(NAME, Empty())]
            await reply(peer, NAME, 1)
            for answered in answers:
                with pytest.raises(MalformedMessage, match="a reply to NAME, where none was due"):
                    await answered
            with pytest.raises(MalformedMessage):  # nobody would hear the reply
                await caller.ask(AGE, U64(1))

    run_async(main)


def test_a_peer_that_goes_is_a_connection_error(run_async: Run) -> None:
    async def main() -> None:
        async with asking() as (caller, peer):
            answered = await caller.ask(AGE, U64(1))
            peer.close()
            with pytest.raises(ConnectionError):
                await answered
            with pytest.raises(ConnectionError):
                await caller.tell(SHOUT, U64(1))

    run_async(main)


def test_nobody_need_wait_for_a_reply(run_async: Run) -> None:
    """An exception that nobody takes is nothing to complain of; the test fails if asyncio does."""

    async def main() -> None:
        async with asking() as (caller, peer):
            await caller.ask(NAME, Empty())
            await reply(peer, NAME, 666)
            await caller.ask(AGE, U64(1))
            peer.close()
            for _ in range(3):
                await asyncio.sleep(0)

    run_async(main)


def test_a_question_that_was_given_up_gives_its_turn_up(run_async: Run) -> None:
    async def main() -> None:
        async with asking() as (caller, peer):
            async with caller.turn:
                tasks = [asyncio.create_task(caller.tell(SHOUT, U64(number))) for number in range(2)]
                await asyncio.sleep(0)
                tasks[0].cancel()
            await tasks[1]
            assert (await hear(peer)).payload == U64(1).pack()

    run_async(main)


def test_of_two_calls_for_one_request_the_later_counts() -> None:
    first, second = answer(AGE, lambda age: age), answer_with_fds(AGE, lambda age, fds: U64(len(fds)))
    table = by_number([first, answer(NAME, lambda _: U64(1)), second])
    assert table[AGE.request] is second
    assert table[AGE.request].answer(U64(1), []) == U64(0)
    assert table[NAME.request].answer(Empty(), []) == U64(1)


def test_many_replies_at_once_leave_others_a_turn(run_async: Run) -> None:
    async def main() -> None:
        async with asking() as (caller, peer):
            first, *_, last = [await caller.ask(AGE, U64(number)) for number in range(100)]
            await peer.send(DIALECT.encode(AGE.request, U64(0), reply=True) * 100)
            await first
            assert not last.done()

    run_async(main)


def test_a_question_that_was_never_sent_has_no_reply(run_async: Run) -> None:
    """Its asker has given up while the peer did not read; the next one gets his own reply."""

    async def main() -> None:
        async with asking() as (caller, peer):
            told = 0
            while True:  # until the socket is full, at the end of a message
                telling = asyncio.create_task(caller.tell(SHOUT, U64(told)))
                await asyncio.sleep(0)
                if not telling.done():
                    break
                told += 1
            given_up = asyncio.create_task(caller.ask(AGE, U64(1)))
            telling.cancel()
            for _ in range(3):  # now it waits to send
                await asyncio.sleep(0)
            given_up.cancel()
            await asyncio.wait([telling, given_up])
            for number in range(told):
                assert (await hear(peer)).payload == U64(number).pack()
            answered = await caller.ask(AGE, U64(2))
            assert (await hear(peer)).payload == U64(2).pack()
            await reply(peer, AGE, 30)
            assert (await asyncio.wait_for(answered, PATIENCE)).payload.value == 30

    run_async(main)
