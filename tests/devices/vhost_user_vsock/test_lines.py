"""The first line of a client."""

import socket
from collections.abc import Iterator

import pytest

from vhost_user_vsock.lines import MOST_LINE, Request, parse_request, read_line


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = socket.socketpair()
    with near, far:
        yield near, far


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (b"CONNECT 1\n", Request(1, None)),
        (b"connect 22\r\n", Request(22, None)),
        (b"Connect 4294967294 \n", Request(0xFFFF_FFFE, None)),
        (b"CONNECT 5 FROM 8:9\n", Request(5, (8, 9))),
        (b"CONNECT 4294967295\n", None),
        (b"CONNECT 99999999999\n", None),
        (b"CONNECT -1\n", None),
        (b"CONNECT\n", None),
        (b"CONNECT 5 FROM 8\n", None),
        (b"CONNECT 5 FROM 8:4294967295\n", None),
        (b"\n", None),
        (b"", None),
    ],
)
def test_what_a_line_asks_for(line: bytes, found: Request | None) -> None:
    assert parse_request(line) == found


def test_what_is_behind_the_line_stays(pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = pair
    far.send(b"CONN")
    assert read_line(near) == b"CONN"
    with pytest.raises(BlockingIOError):
        read_line(near, b"CONN")
    far.send(b"ECT 1\nrest")
    assert read_line(near, b"CONN") == b"CONNECT 1\n"
    assert near.recv(10) == b"rest"


def test_a_line_has_an_end(pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = pair
    far.send(bytes(MOST_LINE))
    with pytest.raises(ConnectionRefusedError):
        read_line(near)
    far.close()
    with pytest.raises(ConnectionResetError):
        read_line(near)
