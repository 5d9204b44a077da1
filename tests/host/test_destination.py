"""A socket to connect to, with and without a place for its address that nobody can change."""

import ctypes
import socket
from pathlib import Path

import pytest

from vhostd.host.destination import Destination


def test_it_connects(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    destination = Destination(str(path))
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as sock:
        with pytest.raises(FileNotFoundError):
            destination.connect(sock)
        listener.bind(str(path))
        with pytest.raises(ConnectionRefusedError):
            destination.connect(sock)
        listener.listen()
        destination.connect(sock)
        assert sock.getpeername() == str(path)


def test_it_does_not_wait(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(0)
        socks = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) for _ in range(2)]
        Destination(str(path)).connect(socks[0])
        with pytest.raises(BlockingIOError):
            Destination(str(path)).connect(socks[1])
        for sock in socks:
            sock.close()


def test_its_address_may_be_read_elsewhere(tmp_path: Path) -> None:
    here, there = Destination(str(tmp_path / "a")), Destination(str(tmp_path / "b"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(there.path)
        place = ctypes.create_string_buffer(there.fixed)
        here.take_name_from(ctypes.addressof(place))
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            here.connect(sock)
            assert sock.getpeername() == there.path


@pytest.mark.parametrize("path", ["", "x" * 108, "a\0b"])
def test_no_socket_has_such_a_path(path: str) -> None:
    with pytest.raises(ValueError, match="no socket has the path"):
        Destination(path)
