"""Packets: each arrives by itself, with its fd."""

import os
import socket

import pytest

from vhostd.wire.packets import receive_packet, send_packet


def test_packets_stay_apart_and_bring_their_fds() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, open(os.devnull) as file:
        send_packet(ours, b"with", [file.fileno()])
        send_packet(ours, b"without")
        data, (fd,) = receive_packet(theirs, 16)
        assert data == b"with"
        assert os.path.samestat(os.fstat(fd), os.fstat(file.fileno()))
        assert not os.get_inheritable(fd)
        os.close(fd)
        assert receive_packet(theirs, 16) == (b"without", [])


def test_nothing_waits_that_is_not_to() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        with pytest.raises(BlockingIOError):
            receive_packet(ours, 16, socket.MSG_DONTWAIT)
        with pytest.raises(BlockingIOError):
            fill(ours)


def fill(sock: socket.socket) -> None:
    """Sends packets until there is no room."""
    while True:
        send_packet(sock, bytes(1024), flags=socket.MSG_DONTWAIT)
