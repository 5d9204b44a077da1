"""A recorded front-end's part, spoken again."""

import asyncio
import socket
from pathlib import Path

import pytest

from tests.conftest import Run
from tests.sessions import Echo
from tests.trace.ends import put, take
from tests.trace.recorded import recorded, replayed
from vhostd.errors import SetupError
from vhostd.frontend import SharedMemory
from vhostd.trace.decoding import ASKING
from vhostd.trace.entries import AnyEntry, Line, Message, Side
from vhostd.trace.passed import PassedFd
from vhostd.trace.recording import entries as read
from vhostd.trace.replay import Replay
from vhostd.vhost_user.messages import (
    BACK_END,
    GET_FEATURES,
    GET_VRING_BASE,
    SET_BACKEND_REQ_FD,
    SHARED_OBJECT_LOOKUP,
    SharedObject,
    VringState,
)
from vhostd.virtio.virtqueue import Virtqueue
from vhostd.wire.fds import close_all
from vhostd.wire.framing import HEADER, REPLY, VERSION

PACKED = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])


async def talk(entries: list[AnyEntry], *, packed: bool = False) -> None:
    """A front-end that does a bit of everything."""
    memory = SharedMemory(1 << 20)
    async with recorded(Echo(), entries, memory=True) as frontend:
        await frontend.negotiate(packed=packed, inflight=True)
        area, fd = await frontend.get_inflight(2, 8)
        with fd:
            await frontend.set_inflight(area, fd)
        await frontend.share(memory)
        queue = await frontend.start(memory, index=0, size=8)
        for i in range(10):
            assert await queue.request(b"%d" % i, 4) == b"%d" % i
        await frontend.call(GET_VRING_BASE, VringState(0, 0))
        queue.close()
    memory.close()


@PACKED
def test_a_replay_has_the_same_replies(run_async: Run, *, packed: bool) -> None:
    async def main() -> None:
        entries: list[AnyEntry] = []
        await talk(entries, packed=packed)
        device = Echo()
        replay, told = await replayed(device, entries, memory=True)
        assert told == []
        sent = [each for each in entries if isinstance(each, Message) and each.sender == "front-end"]
        assert (replay.sent, replay.differing) == (len(sent), 0)
        assert replay.same == sum(isinstance(each, Message) for each in entries) - len(sent)
        assert device.served == 10

    run_async(main)


def test_without_memory_nothing_is_in_the_rings(run_async: Run) -> None:
    async def main() -> None:
        entries: list[AnyEntry] = []
        await talk(entries)
        device = Echo()
        replay, told = await replayed(device, entries)
        assert device.served == 0
        assert told == ["GET_VRING_BASE index=0 num=0, was index=0 num=10"]
        assert replay.differing == 1

    run_async(main)


def test_another_back_end_answers_otherwise(run_async: Run) -> None:
    async def main() -> None:
        entries: list[AnyEntry] = []
        await talk(entries)
        device = Echo()
        device.space[:4] = b"CONF"
        device.features = 1 << 6
        _, told = await replayed(device, entries, memory=True)
        assert told == [
            "GET_FEATURES with bit6, without bit5",
            "SET_FEATURES without bit5",  # it does not accept what is not offered
            "GET_CONFIG offset=0 size=1 data=43, was offset=0 size=1 data=63",
        ]

    run_async(main)


def test_a_back_end_that_goes(run_async: Run) -> None:
    async def main() -> None:
        entries: list[AnyEntry] = []
        await talk(entries)
        first = next(each for each in entries if isinstance(each, Message))
        first.flags = 2  # no version of the protocol
        replay, told = await replayed(Echo(), entries)
        assert told == ["the back-end has closed the connection instead of GET_FEATURES"]
        assert replay.differing == 1

    run_async(main)


def test_what_was_not_recorded_is_told(run_async: Run) -> None:
    async def main() -> None:
        entries: list[AnyEntry] = []
        await talk(entries)
        acked = next(
            each
            for each in entries
            if isinstance(each, Message) and each.sender == "back-end" and each.request == 3
        )
        entries.remove(acked)
        _, told = await replayed(Echo(), entries, memory=True)
        assert told == ["SET_OWNER ack=0, which was not recorded"]

    run_async(main)


def test_what_the_back_end_asks_is_answered_as_it_was(run_async: Run) -> None:
    """With fds of the same kinds; what is asked too often gets the last answer again."""

    def said(line: Line, sender: Side, request: int, payload: bytes = b"", *fds: str) -> Message:
        passed = tuple(PassedFd(kind=kind, size=1) for kind in fds)
        return Message(
            time=0,
            connection=1,
            line=line,
            sender=sender,
            request=request,
            flags=VERSION if sender is ASKING[line] else VERSION | REPLY,
            size=len(payload),
            payload=payload,
            fds=passed,
        )

    lookup = BACK_END.encode(SHARED_OBJECT_LOOKUP.request, SharedObject(b"an object"))
    recording = [
        said(Line.MAIN, Side.FRONT_END, SET_BACKEND_REQ_FD.request, b"", "socket"),
        said(Line.BACKEND, Side.FRONT_END, SHARED_OBJECT_LOOKUP.request, bytes(8), "memfd"),
        said(Line.BACKEND, Side.FRONT_END, SHARED_OBJECT_LOOKUP.request, b"\1" + bytes(7)),
        said(Line.MAIN, Side.FRONT_END, GET_FEATURES.request),
        said(Line.MAIN, Side.BACK_END, GET_FEATURES.request, bytes(8)),
    ]

    async def serve(sock: socket.socket) -> list[tuple[bytes, int]]:
        _, (fd,) = await take(sock, HEADER.size)
        answers = []
        with sock, socket.socket(fileno=fd.take()) as channel:
            for _ in range(3):
                await put(channel, lookup)
                data, fds = await take(channel, HEADER.size + 8)
                answers.append((data[HEADER.size :][:1], len(fds)))
                close_all(fds)
            await take(sock, HEADER.size)
            await put(sock, HEADER.pack(GET_FEATURES.request, VERSION | REPLY, 8) + bytes(8))
            await take(sock, 1)
        return answers

    async def main() -> None:
        ours, theirs = socket.socketpair()
        serving = asyncio.create_task(serve(theirs))
        told: list[str] = []
        await Replay(ours, recording, told.append, device=None, memory=False).run(recording)
        assert await serving == [(b"\0", 1), (b"\1", 0), (b"\1", 0)]
        assert told == []

    run_async(main)


class Tired(Echo):
    """Answers six requests."""

    async def echoq(self, queue: Virtqueue) -> None:
        async for chain in queue:
            queue.push(chain)
            self.served += 1
            if self.served == 6:
                await asyncio.Event().wait()


def test_a_device_that_does_less_is_told_of_once(run_async: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vhostd.trace.replay.PATIENCE", 1.0)

    async def main() -> None:
        entries: list[AnyEntry] = []
        await talk(entries)
        _, told = await replayed(Tired(), entries, memory=True)
        assert told == ["ring 0: 6 requests are done, 7 were"]

    run_async(main)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", None),
        ("hello\n", "line 1: "),
        ('{"vhostd_trace": 2, "started": ""}\n', "line 1"),
        ('{"time": 0, "connection": 1, "note": ""}\n', "line 1"),
        (
            '{"vhostd_trace": 1, "started": ""}\n{"time": 0, "connection": 1}\n',
            "line 2: message.line: Field required",
        ),
        (
            '{"vhostd_trace": 1, "started": ""}\n'
            '{"time": 0, "connection": 1, "line": "main", "sender": "front-end", "request": 1, "flags": 1, '
            '"size": 1, "payload": "zz"}\n',
            "line 2: message.payload: non-hexadecimal",
        ),
        ('{"vhostd_trace": 1, "started": ""}\n{"time": 0, "connection": 1, "note": "a"}\n', None),
    ],
)
def test_a_recording_is_checked(tmp_path: Path, text: str, fault: str | None) -> None:
    path = tmp_path / "recording"
    path.write_text(text)
    if fault is None:
        list(read(path, 1))
    else:
        with pytest.raises(SetupError, match=f"no recording of vhostctl trace: .*{fault}"):
            list(read(path, 1))
