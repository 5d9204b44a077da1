"""The renderer's native part: what it is asked stays inside the memory that it was given.

A build with sanitizers (tests/run.sh) sees whether that is so.
"""

import os
import random
import socket
import subprocess
import sys
from array import array
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from typing import Any

import pytest

from vhost_user_gpu.virgl import messages
from vhost_user_gpu.virgl.library import Memory
from vhost_user_gpu.virgl.messages import ARENA, MOST_PACKET, Entry, Head, Hello, Replies, Result
from vhostd import Layout, Row

OURS = "vhost_user_gpu/virgl/library"  # in a sanitizer's report
GUEST, PICTURE = 1, 2  # regions
SIDE, SIZE = 64, 1 << 20
MOST_RANGES = 16
REQUESTS, FEWEST = 1000, 100
PIXELS = 4 * SIDE * (SIDE + 1)
EDGES = (0, 1, 2, 3, SIDE - 1, SIDE, SIDE + 1, 1 << 16, 1 << 31, (1 << 32) - 1)


class Renderer:
    """A renderer of the build that is tested, and its program's end of the socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._serials = count(1)
        self.greeting = sock.recv(MOST_PACKET)

    def ask(self, row: Row[Any, Any], payload: Layout, *fds: int) -> int:
        """The errno of a request, or 0. Raises EOFError if there is no renderer any more."""
        serial = next(self._serials)
        data = Head(row.request, serial, 0, 0, 0).pack() + payload.pack()
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
        try:
            self._socket.sendmsg([data], rights)
            reply = self._socket.recv(MOST_PACKET)
        except OSError:
            reply = b""
        if not reply:
            raise EOFError
        result = Result.unpack(reply[Replies.SIZE : Replies.SIZE + Result.SIZE])
        assert result.serial == serial
        return result.error


@contextmanager
def renderer() -> Iterator[Renderer]:
    """A renderer, which may end; no sanitizer complains because of us."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-m", "vhost_user_gpu.virgl.renderer", str(theirs.fileno()), "--sandbox=none"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with (
        ours,
        subprocess.Popen(
            command, env=environment, pass_fds=[theirs.fileno()], stderr=subprocess.PIPE, text=True
        ) as process,
    ):
        theirs.close()
        with suppress(EOFError):
            yield Renderer(ours)
        ours.close()
        _, said = process.communicate()
    assert OURS not in said, said
    assert "Traceback" not in said, said


def share(it: Renderer, number: int, content: bytes) -> None:
    """Gives it a region of memory."""
    fd = os.memfd_create("region")
    os.write(fd, content)
    assert it.ask(messages.ADD_REGION, messages.AddRegion(number, 0, len(content)), fd) == 0
    os.close(fd)


def arena(dice: random.Random) -> bytes:
    """Ranges of a backing, and then commands of which the heads are right."""
    ranges, words = bytearray(), array("I")
    for _ in range(MOST_RANGES):
        offset = dice.randrange(SIZE)
        ranges += Entry(GUEST, 0, offset, dice.randrange(min(SIZE - offset, 1 << 16))).pack()
    while len(words) < SIZE // 8:
        length = dice.randrange(12)
        words.append(dice.randrange(60) | dice.randrange(12) << 8 | length << 16)
        words.extend(dice.choice((0, 1, 2, 3, 7, SIDE, dice.getrandbits(32))) for _ in range(length))
    return bytes(ranges) + words.tobytes()


@pytest.mark.parametrize(
    ("offset", "size"), [(0, 4097), (4097, 0), (4096, 1), (1, 1 << 64 - 1), (1 << 63, 1)]
)
def test_memory_ends_where_it_ends(offset: int, size: int) -> None:
    fd = os.memfd_create("memory")
    os.ftruncate(fd, 4096)
    memory = Memory(fd, 4096)
    os.close(fd)
    assert memory.bytes(0, 4096) == bytes(4096)
    assert memory.bytes(4096, 0) == b""
    with pytest.raises(ValueError, match=f"{size} bytes at {offset} of 4096"):
        memory.bytes(offset, size)


@pytest.mark.parametrize("seed", range(3))
def test_random_requests_stay_inside(seed: int) -> None:
    """The library may refuse them, or end by them: that is what the renderer is a process for."""
    dice = random.Random(seed)
    asked = 0
    with renderer() as it:
        assert Hello.unpack(it.greeting[: Hello.SIZE]).ready
        for region, content in ((ARENA, arena(dice)), (GUEST, bytes(SIZE)), (PICTURE, bytes(PIXELS))):
            share(it, region, content)
        for number in range(1, 5):
            it.ask(messages.CREATE_CONTEXT, messages.CreateContext(number, 0, b"test"))
        for asked in range(REQUESTS):  # noqa: B007
            it.ask(*request(dice))
    assert asked >= FEWEST


def request(dice: random.Random) -> tuple[Row[Any, Any], Layout]:
    """A request as the program could send it, with a guest's numbers in it."""

    def few() -> int:
        return dice.randrange(1, 8)

    resource, context = few(), few()
    size, offset = 4 * dice.randrange(64), Entry.SIZE * MOST_RANGES + 4 * dice.randrange(SIZE // 16)
    side = dice.choice((1, SIDE, SIDE + 1))
    return dice.choice(
        (
            (messages.CREATE_RESOURCE, messages.CreateResource(resource, 2, 1, 2, side, side, 1, 1, 0, 0, 1)),
            (messages.CREATE_RESOURCE, messages.CreateResource(resource, 0, 64, 16, 1000, 1, 1, 1, 0, 0, 0)),
            (messages.FREE_RESOURCE, messages.Resource(resource)),
            (messages.ATTACH_BACKING, messages.Attach(resource, dice.randrange(MOST_RANGES), 0)),
            (messages.DETACH_BACKING, messages.Resource(resource)),
            (messages.ATTACH_RESOURCE, messages.ContextResource(context, resource)),
            (messages.DETACH_RESOURCE, messages.ContextResource(context, resource)),
            (messages.SUBMIT, messages.Submit(context, size, offset)),
            (messages.TRANSFER, transfer(dice, resource, context)),
            (messages.READ, messages.Read(resource, PICTURE, 4 * SIDE, *read_box(dice))),
        )
    )


def transfer(dice: random.Random, resource: int, context: int) -> messages.Transfer:
    """A box that is somewhere, and mostly inside."""
    level, stride, layer_stride, offset = (dice.choice(EDGES) for _ in range(4))
    box = (dice.choice(EDGES) if dice.random() < 0.1 else dice.randrange(SIDE) for _ in range(6))
    how = (level % 2, stride, layer_stride, dice.randrange(2))
    return messages.Transfer(*(resource, dice.choice((0, context)), *how, *box, offset))


def read_box(dice: random.Random) -> tuple[int, int, int, int]:
    """A rectangle of a picture."""
    x, y = dice.randrange(SIDE), dice.randrange(SIDE)
    return x, y, dice.randint(1, SIDE - x), dice.randint(1, SIDE - y)
