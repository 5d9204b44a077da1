"""The kernel's own word on sockets."""

import os
import socket
import struct
from pathlib import Path

import pytest

from vhostd.ctl.processes.sockets import UnixSocket, fds, owners, parse, unix_sockets


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


@pytest.mark.parametrize(
    ("attributes", "found"),
    [
        (b"", UnixSocket(7, "", False, 0)),
        (attribute(0, b"/run/a\0"), UnixSocket(7, "/run/a", False, 0)),
        (attribute(0, b"\0abstract"), UnixSocket(7, "@abstract", False, 0)),
        (attribute(1, bytes(8)) + attribute(2, struct.pack("=I", 9)), UnixSocket(7, "", False, 9)),
        (struct.pack("=HH", 0, 9), UnixSocket(7, "", False, 0)),
    ],
)
def test_an_answer(attributes: bytes, found: UnixSocket) -> None:
    assert parse(struct.pack("=BBBBIII", 1, 1, 1, 0, 7, 0, 0) + attributes) == found


def test_a_connection(tmp_path: Path) -> None:
    path = str(tmp_path / "sock")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(path)
        listener.listen()
        client.connect(path)
        accepted, _ = listener.accept()
        with accepted:
            seen = unix_sockets()
            ours = fds(os.getpid())
            heard = seen[ours[listener.fileno()]]
            assert (heard.name, heard.listening) == (path, True)
            served = seen[ours[accepted.fileno()]]
            assert (served.name, served.listening) == (path, False)
            assert served.peer == ours[client.fileno()]
            assert owners({served.peer}) == {served.peer: os.getpid()}


def test_what_nobody_has() -> None:
    assert owners({0}) == {}
