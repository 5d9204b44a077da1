"""A connection over real sockets: which fds belong to which message, and every way for it to end."""

import array
import asyncio
import os
import select
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from tests.conftest import Run
from vhostd.errors import FrontendGone, MalformedMessage, MemoryLost
from vhostd.vhost_user.messages import BACK_END, FRONT_END
from vhostd.wire.channel import Channel
from vhostd.wire.framing import HEADER, MAX_FDS, VERSION, Message

PATIENCE = 20.0  # seconds for what takes none: it only bounds how long a fault is waited for
HELLO = HEADER.pack(1, VERSION, 0)


def message(number: int, payload: bytes = b"") -> bytes:
    return HEADER.pack(number, VERSION, len(payload)) + payload


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[Channel, socket.socket]]:
    """A channel and the other end of its socket."""
    ours, theirs = socket.socketpair()
    theirs.settimeout(PATIENCE)
    channel = Channel(ours, FRONT_END)
    with theirs:
        try:
            yield channel, theirs
        finally:
            channel.close()


async def received(channel: Channel) -> Message:
    message = await channel.receive()
    assert message is not None
    return message


def send_with_fds(sock: socket.socket, data: bytes, *numbers: int) -> None:
    fds = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", numbers))] if numbers else []
    sock.sendmsg([data], fds)


async def waiting(work: Awaitable[object]) -> "asyncio.Task[object]":
    """`work` as a task that has come to where it waits."""

    async def do() -> object:
        return await work

    task = asyncio.create_task(do())
    await asyncio.sleep(0)
    assert not task.done()
    return task


async def until(reached: Callable[[], bool]) -> None:
    while not reached():
        await asyncio.sleep(0)


def drain(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += sock.recv(size - len(data))
    return data


# --- Receiving ------------------------------------------------------------------------------------------


def test_fds_belong_to_the_message_that_they_were_sent_with(run_async: Run) -> None:
    """The kernel glues a message without fds to the next one's, were they read at once."""

    async def main() -> None:
        async with connected() as (channel, peer):
            counts = [0, 1, 0, 2, 0, MAX_FDS, 0]
            pipes = [os.pipe() for _ in range(sum(counts))]
            ends = iter(pipes)
            for number, count in enumerate(counts):
                send_with_fds(peer, message(number, bytes(number)), *(next(ends)[0] for _ in range(count)))
            ends = iter(pipes)
            for number, count in enumerate(counts):
                found = await received(channel)
                assert (found.request, found.payload, len(found.fds)) == (number, bytes(number), count)
                for fd in found.fds:
                    assert os.fstat(fd.fileno()).st_ino == os.fstat(next(ends)[0]).st_ino
                found.close()
            for end in sum(pipes, ()):
                os.close(end)

    run_async(main)


def test_received_fds_are_not_for_children(run_async: Run) -> None:
    async def main() -> None:
        async with connected() as (channel, peer):
            send_with_fds(peer, HELLO, 0, 0)
            found = await received(channel)
            assert [os.get_inheritable(fd.fileno()) for fd in found.fds] == [False, False]
            found.close()

    run_async(main)


@pytest.mark.parametrize("count", [MAX_FDS + 1, 100])
def test_more_fds_than_any_message_has_are_malformed_and_closed(count: int, run_async: Run) -> None:
    async def main() -> None:
        async with connected() as (channel, peer):
            send_with_fds(peer, HELLO, *[0] * count)
            with pytest.raises(MalformedMessage, match=f"more than {MAX_FDS} fds"):
                await channel.receive()

    run_async(main)


def test_a_message_may_come_byte_by_byte(run_async: Run) -> None:
    async def main() -> None:
        async with connected() as (channel, peer):
            receiving = await waiting(channel.receive())
            for byte in message(7, b"payload"):
                assert not receiving.done()
                peer.send(bytes([byte]))
                await asyncio.sleep(0)
            found = await receiving
            assert isinstance(found, Message)
            assert (found.request, found.payload) == (7, b"payload")

    run_async(main)


def test_many_messages_may_come_at_once(run_async: Run) -> None:
    async def main() -> None:
        async with connected() as (channel, peer):
            peer.send(b"".join(message(number, bytes(number)) for number in range(50)))
            assert [(await received(channel)).request for _ in range(50)] == list(range(50))

    run_async(main)


def test_what_is_no_message_is_malformed(run_async: Run) -> None:
    async def main() -> None:
        async with connected() as (channel, peer):
            send_with_fds(peer, bytes(HEADER.size), 0)
            with pytest.raises(MalformedMessage, match="protocol version 0"):
                await channel.receive()

    run_async(main)


def test_a_channel_for_replies_takes_replies_only(run_async: Run) -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        channel = Channel(ours, BACK_END, replies=True)
        with theirs:
            theirs.send(message(2))
            with pytest.raises(MalformedMessage, match="CONFIG_CHANGE_MSG without the reply flag"):
                await channel.receive()
        channel.close()

    run_async(main)


# --- Ends -----------------------------------------------------------------------------------------------


def test_the_peer_may_go_between_messages(run_async: Run) -> None:
    async def main() -> None:
        async with connected() as (channel, peer):
            peer.send(HELLO)
            peer.close()
            assert await channel.receive() is not None
            assert await channel.receive() is None
            assert await channel.receive() is None

    run_async(main)


def test_the_peer_may_go_while_it_is_waited_for(run_async: Run) -> None:
    async def main() -> None:
        async with connected() as (channel, peer):
            receiving = await waiting(channel.receive())
            peer.close()
            assert await receiving is None

    run_async(main)


@pytest.mark.parametrize("size", [1, HEADER.size, HEADER.size + 3])
def test_the_end_inside_a_message_is_malformed(size: int, run_async: Run) -> None:
    async def main() -> None:
        async with connected() as (channel, peer):
            send_with_fds(peer, message(7, b"payload")[:size], 0)
            peer.close()
            with pytest.raises(MalformedMessage, match="in the middle of a message"):
                await channel.receive()

    run_async(main)


def test_a_reset_is_an_end(run_async: Run) -> None:
    """A peer that closes without having read all gives ECONNRESET, not an end of file."""

    async def main() -> None:
        async with connected() as (channel, peer):
            await channel.send(HELLO)
            peer.close()
            assert await channel.receive() is None

    run_async(main)


def test_close_may_be_called_again_and_closes_what_a_cut_message_brought(run_async: Run) -> None:
    async def main() -> None:
        async with connected() as (channel, peer):
            send_with_fds(peer, HELLO[:5], 0, 0)
            receiving = await waiting(channel.receive())
            receiving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await receiving
            channel.close()
            channel.close()
            assert peer.recv(1) == b""

    run_async(main)


# --- Sending --------------------------------------------------------------------------------------------


def test_fds_go_with_the_first_byte_and_stay_the_sender_s(run_async: Run) -> None:
    async def main() -> None:
        async with connected() as (channel, peer):
            await channel.send(message(7, b"payload"), (0, 1))
            first, ancillary, _, _ = peer.recvmsg(1, 64)
            assert first == message(7)[:1]
            sent = array.array("i", ancillary[0][2])
            assert [os.fstat(fd).st_ino for fd in sent] == [os.fstat(fd).st_ino for fd in (0, 1)]
            for fd in sent:
                os.close(fd)

    run_async(main)


def test_sending_waits_for_a_slow_reader_and_goes_on(run_async: Run) -> None:
    async def main() -> None:
        async with connected() as (channel, peer):
            data = os.urandom(1 << 20)
            sending = await waiting(channel.send(data, (0,)))
            got, fds = b"", array.array("i")
            while len(got) < len(data):
                await until(lambda: bool(select.select([peer], [], [], 0)[0]))
                piece, ancillary, _, _ = peer.recvmsg(1 << 16, socket.CMSG_SPACE(8))
                got += piece
                for _level, _kind, content in ancillary:
                    fds.frombytes(content)
            assert got == data
            await sending
            (fd,) = fds  # sent once
            os.close(fd)

    run_async(main)


def test_sending_to_a_peer_that_has_gone_is_an_error(run_async: Run) -> None:
    async def main() -> None:
        async with connected() as (channel, peer):
            peer.close()
            with pytest.raises(BrokenPipeError):
                await channel.send(HELLO)

    run_async(main)


def test_a_peer_may_go_while_it_is_sent_to(run_async: Run) -> None:
    async def main() -> None:
        async with connected() as (channel, peer):
            sending = await waiting(channel.send(bytes(1 << 20)))
            peer.close()
            with pytest.raises(ConnectionError):
                await sending

    run_async(main)


def test_one_task_may_send_while_another_receives(run_async: Run) -> None:
    async def main() -> None:
        async with connected() as (channel, peer):
            receiving = await waiting(channel.receive())
            size = 1 << 20
            sending = await waiting(channel.send(bytes(size)))
            peer.send(HELLO)
            assert await receiving is not None
            await asyncio.gather(sending, asyncio.to_thread(drain, peer, size))

    run_async(main)


# --- Abort ----------------------------------------------------------------------------------------------


def test_abort_reaches_who_waits_and_who_comes_later(run_async: Run) -> None:
    async def main() -> None:
        async with connected() as (channel, peer):
            sending = await waiting(channel.send(bytes(1 << 20)))
            receiving = await waiting(channel.receive())
            channel.abort(MemoryLost("the first"))
            channel.abort(MemoryLost("the second"))
            for waits in (receiving, sending, channel.receive(), channel.send(HELLO)):
                with pytest.raises(MemoryLost, match="the first"):
                    await waits
            assert peer.recv(1)

    run_async(main)


def test_abort_comes_before_messages_that_are_there(run_async: Run) -> None:
    async def main() -> None:
        async with connected() as (channel, peer):
            peer.send(HELLO)
            channel.abort(MemoryLost("gone"))
            with pytest.raises(MemoryLost):
                await channel.receive()

    run_async(main)


def test_who_was_cancelled_waits_no_more_and_the_channel_goes_on(run_async: Run) -> None:
    async def main() -> None:
        async with connected() as (channel, peer):
            sending = await waiting(channel.send(bytes(1 << 20)))
            receiving = await waiting(channel.receive())
            for task in (sending, receiving):
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            assert not channel._waiters
            peer.send(message(5))
            assert (await received(channel)).request == 5
            while select.select([peer], [], [], 0)[0]:
                peer.recv(1 << 20)
            await channel.send(HELLO)
            assert peer.recv(100) == HELLO

    run_async(main)


def test_a_pidfd_that_comes_unasked_is_closed(run_async: Run) -> None:
    """A launcher may have set SO_PASSPIDFD, and SO_PASSCRED too."""

    async def main() -> None:
        ours, theirs = socket.socketpair()
        try:
            theirs.setsockopt(socket.SOL_SOCKET, 76, 1)
        except OSError:
            pytest.skip("this kernel has no SO_PASSPIDFD")
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        channel = Channel(theirs, FRONT_END)
        fds = [os.eventfd(0) for _ in range(8)]
        socket.send_fds(ours, [HELLO], fds)
        message = await channel.receive()
        assert message is not None
        assert len(message.fds) == 8
        message.close()
        for fd in fds:
            os.close(fd)
        ours.close()
        channel.close()

    run_async(main)


def test_a_peer_that_hangs_up_is_noticed_before_its_messages_are_read(run_async: Run) -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        channel = Channel(theirs, FRONT_END)
        ours.send(HELLO)
        leaving = asyncio.create_task(channel.hang_up())
        await asyncio.sleep(0)
        assert not leaving.done()
        ours.close()
        await leaving
        assert await channel.receive() is not None
        assert await channel.receive() is None
        channel.close()

    run_async(main)


def test_work_that_the_peer_waits_for(run_async: Run) -> None:
    async def main() -> None:
        async with connected() as (channel, peer):
            await channel.outlast(asyncio.sleep(0), "it slept")
            asyncio.get_running_loop().call_soon(peer.close)
            with pytest.raises(FrontendGone, match="has gone while it slept"):
                await channel.outlast(asyncio.sleep(PATIENCE), "it slept")

    run_async(main)


def test_who_waits_to_send_hears_that_the_channel_is_closed(run_async: Run) -> None:
    async def main() -> None:
        async with connected() as (channel, _):
            sending = await waiting(channel.send(bytes(1 << 22)))
            channel.close()
            for work in (sending, channel.send(HELLO)):
                with pytest.raises(ConnectionResetError, match="closed"):
                    await asyncio.wait_for(work, PATIENCE)

    run_async(main)
