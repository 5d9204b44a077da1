"""What a back-end says, cut anywhere."""

import os
import socket

import pytest

from vhostd.fuzz.listener import KEPT, Listener
from vhostd.wire.framing import HEADER

LONG = bytes(range(256)) * 4


@pytest.mark.parametrize("piece", [1, 5, 13, 10_000])
def test_messages_are_heard_however_they_are_cut(piece: int) -> None:
    heard: list[tuple[int, int, int, bytes]] = []
    ours, theirs = socket.socketpair()
    listener = Listener(ours, lambda *said: heard.append(said))
    data = HEADER.pack(1, 5, 8) + bytes(8) + HEADER.pack(3, 1, len(LONG)) + LONG + HEADER.pack(15, 5, 0)
    for at in range(0, len(data), piece):
        theirs.sendall(data[at : at + piece])
        listener.read()
    assert heard == [(1, 5, 8, bytes(8)), (3, 1, len(LONG), LONG[:KEPT]), (15, 5, 0, b"")]
    theirs.close()
    listener.read()
    assert not listener.is_open
    listener.close()


def test_fds_that_come_along_are_closed() -> None:
    ours, theirs = socket.socketpair()
    listener = Listener(ours, lambda *_: None)
    before = len(os.listdir("/proc/self/fd"))
    socket.send_fds(theirs, [HEADER.pack(1, 5, 0)], [0, 1, 2])
    listener.read()
    assert len(os.listdir("/proc/self/fd")) == before
    theirs.close()
    listener.close()
