"""The AF_UNIX sockets of this machine, as the kernel tells them (sock_diag(7)), and who has them."""

import os
import re
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from vhostd.ctl.processes.found import PROC, pids

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
DONE, ERROR = 3, 2  # types of netlink's own messages
DUMP = 0x301  # flags: a request for all there are
SHOW_NAME, SHOW_PEER = 1, 4
NAME, PEER = 0, 2  # attributes of an answer
LISTENING = 10  # a state; those of TCP
HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
REQUEST = struct.Struct("=BBHIIIII")  # struct unix_diag_req: family, protocol, -, states, inode, show, cookie
ANSWER = struct.Struct("=BBBBIII")  # struct unix_diag_msg: family, type, state, -, inode, cookie
ATTRIBUTE = struct.Struct("=HH")  # struct nlattr: length, type
SIZE = 1 << 16  # bytes of a datagram, at most
LINK = re.compile(r"socket:\[(\d+)\]")


@dataclass(frozen=True)
class UnixSocket:
    """A socket: its inode, its name, which an accepted one has of the listening one, and its peer's inode."""

    inode: int
    name: str
    listening: bool
    peer: int


def unix_sockets() -> dict[int, UnixSocket]:
    """All sockets of this network namespace by their inodes; raises OSError if the kernel tells none."""
    query = REQUEST.pack(socket.AF_UNIX, 0, 0, 0xFFFF_FFFF, 0, SHOW_NAME | SHOW_PEER, 0, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG) as kernel:
        kernel.send(HEADER.pack(HEADER.size + len(query), SOCK_DIAG_BY_FAMILY, DUMP, 1, 0) + query)
        return {each.inode: each for each in _answers(kernel)}


def _answers(kernel: socket.socket) -> Iterator[UnixSocket]:
    while True:
        data = kernel.recv(SIZE)
        while data:
            length, kind, *_ = HEADER.unpack_from(data)
            if kind == DONE:
                return
            if kind == ERROR:
                number = -struct.unpack_from("=i", data, HEADER.size)[0]
                raise OSError(number, os.strerror(number))
            yield parse(data[HEADER.size : length])
            data = data[_aligned(length) :]


def parse(answer: bytes) -> UnixSocket:
    """A socket of a struct unix_diag_msg with its attributes."""
    _, _, state, _, inode, *_ = ANSWER.unpack_from(answer)
    name, peer = b"", 0
    rest = answer[ANSWER.size :]
    while len(rest) >= ATTRIBUTE.size:
        length, kind = ATTRIBUTE.unpack_from(rest)
        value = rest[ATTRIBUTE.size : length]
        if kind == NAME:
            name = b"@" + value[1:] if value.startswith(b"\0") else value.rstrip(b"\0")
        elif kind == PEER:
            (peer,) = struct.unpack("=I", value)
        rest = rest[_aligned(max(length, ATTRIBUTE.size)) :]
    return UnixSocket(inode, os.fsdecode(name), state == LISTENING, peer)


def _aligned(length: int) -> int:
    return -(-length // 4) * 4


def fds(pid: int) -> dict[int, int]:
    """The fds of a process that are sockets, each with its inode; raises OSError if they may not be seen."""
    found = {}
    folder = PROC / str(pid) / "fd"
    for entry in os.listdir(folder):
        with suppress(OSError):  # it is closed meanwhile
            if match := LINK.fullmatch(os.readlink(folder / entry)):
                found[int(entry)] = int(match[1])
    return found


def owners(inodes: set[int]) -> dict[int, int]:
    """The process that has each of these sockets, as far as its fds may be seen."""
    found: dict[int, int] = {}
    for pid in pids():
        if inodes <= found.keys():
            break
        with suppress(OSError):
            found = {inode: pid for inode in fds(pid).values() if inode in inodes} | found
    return found
