"""Floods: what a guest, its front-end, or a stranger can do to a program without pause.

While one goes on, the program is to answer a message, and to end, as if nothing was.
"""

import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from tests.programs import PATIENCE, connect, executable, get_features, listening
from vhostd.frontend import Frontend, Queue, SharedMemory
from vhostd.frontend.drivers.block import DISCARD, HEADER, IN, OUT, SECTOR, SEGMENT, WRITE_ZEROES
from vhostd.vhost_user.messages import FRONT_END, SET_VRING_ENABLE, VringState

DURATION = 0.2  # seconds


class Victim(NamedTuple):
    """A program, and a request that it completes at once: the ring's index, what is in it, and room."""

    name: str
    options: tuple[str, ...]
    ring: int
    data: bytes
    room: int
    what: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.what}".rstrip()


RNG = Victim("vhost-user-rng", (), 0, b"", 4096)
GPU = Victim("vhost-user-gpu", (), 0, (0x0100).to_bytes(4, "little") + bytes(20), 512)  # GET_DISPLAY_INFO
ENTRIES = 16384  # of a blob that is refused for its size, when all of them have been looked up
BLOBS = GPU._replace(
    what="blobs",
    data=struct.pack("<I20x4I2Q", 0x010C, 1, 1, 0, ENTRIES, 0, 1 << 60)
    + struct.pack("<QII", 0x1000_0000, 16, 0) * ENTRIES,
)
LED = b"\x11\0\1\0\1\0\0\0"
INPUT = Victim("vhost-user-input", ("--event-socket={folder}/events",), 1, LED, 0)
NET = Victim("vhost-user-net", ("--stream={folder}/passt",), 1, bytes(12 + 60), 0)
VICTIMS = (RNG, GPU, INPUT, NET)

BLK_DATA, BLK_SIZE = (
    256 << 10,
    64 << 20,
)  # bytes: of one transfer, the most that is done at once; and the disk's
SEGMENTS, DISCARDED, ZEROED = 16, 128 << 20, 16 << 20  # the most that a request may name
IMAGES = {"a tmpfs": Path("/dev/shm"), "the disk": Path("/var/tmp")}


def _blk(what: str, data: bytes, room: int, *options: str) -> Victim:
    return Victim("vhost-user-blk", options, 0, data, room, what)


def _segments(count: int, size: int) -> bytes:
    """The data of a request that names so many ranges, all of them the disk's first bytes."""
    return SEGMENT.pack(0, min(size, BLK_SIZE) // SECTOR, 0) * count


def _disks() -> Iterator[Victim]:
    """One for each kind of request, and of storage."""
    for place, folder in IMAGES.items():
        image = f"--blk-file={folder}/{{name}}"
        yield _blk(f"reads of {place}", HEADER.pack(IN, 0, 0), BLK_DATA + 1, image)
        yield _blk(f"writes to {place}", HEADER.pack(OUT, 0, 0) + bytes(BLK_DATA), 1, image)
        yield _blk(
            f"zeroes on {place}", HEADER.pack(WRITE_ZEROES, 0, 0) + _segments(SEGMENTS, ZEROED), 1, image
        )
        yield _blk(
            f"discards on {place}", HEADER.pack(DISCARD, 0, 0) + _segments(SEGMENTS, DISCARDED), 1, image
        )


BLK = _blk("", HEADER.pack(IN, 0, 0), 4097, "--ram=64M")


class Target(NamedTuple):
    """What a flood is directed at."""

    path: Path
    frontend: socket.socket
    queue: Queue
    victim: Victim


class Times(NamedTuple):
    """Seconds: the longest for an answer, and from SIGTERM to the end."""

    answer: float
    end: float


Flood = Callable[[Target], None]  # a moment of it


def messages(target: Target) -> None:
    """Messages to which there is no reply, so that the front-end need not wait."""
    if select.select([], [target.frontend], [], PATIENCE)[1]:
        with suppress(BlockingIOError):  # one this short is sent whole or not at all
            message = FRONT_END.encode(SET_VRING_ENABLE.request, VringState(target.victim.ring, 1))
            target.frontend.send(message, socket.MSG_DONTWAIT)


def requests(target: Target) -> None:
    """A ring that is full at all times."""
    queue = target.queue
    while queue.poll() is not None:
        queue.add(target.victim.data, target.victim.room)
    queue.kick()
    if not queue.driver.arm() and select.select([queue.call_fd], [], [], 0.01)[0]:
        os.eventfd_read(queue.call_fd.fileno())


def kicks(target: Target) -> None:
    """Kicks, asked for or not."""
    with suppress(BlockingIOError):
        os.eventfd_write(target.queue.kick_fd.fileno(), 1)


def connections(target: Target) -> None:
    """Further front-ends, which are refused."""
    with suppress(OSError), _stranger(target.path):
        pass


def event_clients(target: Target) -> None:
    """Those who connect to the event socket, and go again."""
    with suppress(OSError), _stranger(target.path.with_name("events")):
        pass


def event_lines(target: Target) -> None:
    """A client of the event socket that writes what is no event."""
    with suppress(OSError), _stranger(target.path.with_name("events")) as sock:
        for _ in range(100):
            sock.sendall(b"E: nonsense\n" * 1000)


CASES: tuple[tuple[Victim, Flood], ...] = (
    *((victim, flood) for victim in (*VICTIMS, BLK) for flood in (messages, requests, kicks, connections)),
    *((victim, requests) for victim in _disks()),
    (BLOBS, requests),
    (INPUT, event_clients),
    (INPUT, event_lines),
)


async def measure(victim: Victim, flood: Flood, folder: Path, duration: float = DURATION) -> Times:
    """Floods a program, asks it questions meanwhile, and ends it."""
    path = folder / "vhost.sock"
    with ExitStack() as stack:
        names = {"folder": folder, "name": f"flood-{os.getpid()}.img"}
        command = [executable(victim.name), *(option.format(**names) for option in victim.options)]
        stack.enter_context(_image(command))
        program = stack.enter_context(listening([*command, "--log-level=error"], path))
        sock = stack.enter_context(connect(path))
        frontend = stack.enter_context(closing(Frontend(sock.dup())))
        memory = stack.enter_context(closing(SharedMemory(16 << 20)))
        await frontend.negotiate()
        await frontend.share(memory)
        queue = stack.enter_context(closing(await frontend.start(memory, victim.ring)))
        for _ in range(queue.size // 2):  # each is up to two descriptors
            queue.add(victim.data, victim.room)
        with _flooding(flood, Target(path, sock, queue, victim)):
            end = time.monotonic() + duration
            answer = 0.0
            while time.monotonic() < end:
                answer = max(answer, _seconds(lambda: get_features(sock)))
            return Times(answer, program.stop())


@contextmanager
def _image(command: list[str]) -> Iterator[None]:
    """The file that is the disk in this command, if there is one: all of it is data at first."""
    paths = [Path(option.partition("=")[2]) for option in command if option.startswith("--blk-file=")]
    try:
        for path in paths:
            path.write_bytes(b"x" * BLK_SIZE)
        yield
    finally:
        for path in paths:
            path.unlink()


@contextmanager
def _stranger(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(str(path))
        yield sock


@contextmanager
def _flooding(flood: Flood, target: Target) -> Iterator[None]:
    over = threading.Event()

    def go_on() -> None:
        with suppress(ConnectionError):  # the program has ended
            while not over.is_set():
                flood(target)

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _seconds(action: Callable[[], object]) -> float:
    begin = time.monotonic()
    action()
    return time.monotonic() - begin
