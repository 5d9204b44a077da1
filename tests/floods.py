"""Floods: what a guest, its front-end, or a stranger can do to a program without pause.

While one goes on, the program is to answer a message, and to end, as if nothing was.
"""

import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from tests.programs import PATIENCE, connect, executable, get_features, listening
from vhostd.framing import encode
from vhostd.frontend import Frontend, Queue, SharedMemory
from vhostd.messages import SET_VRING_ENABLE, VringState

DURATION = 0.2  # seconds


class Victim(NamedTuple):
    """A program, and a request that it completes at once: the ring's index, what is in it, and room."""

    name: str
    options: tuple[str, ...]
    ring: int
    data: bytes
    room: int

    def __str__(self) -> str:
        return self.name


RNG = Victim("vhost-user-rng", (), 0, b"", 4096)
GPU = Victim("vhost-user-gpu", (), 0, (0x0100).to_bytes(4, "little") + bytes(20), 512)  # GET_DISPLAY_INFO
LED = b"\x11\0\1\0\1\0\0\0"
INPUT = Victim("vhost-user-input", ("--event-socket={folder}/events",), 1, LED, 0)
VICTIMS = (RNG, GPU, INPUT)


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
            message = encode(SET_VRING_ENABLE.request, VringState(target.victim.ring, 1))
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
    *((victim, flood) for victim in VICTIMS for flood in (messages, requests, kicks, connections)),
    (INPUT, event_clients),
    (INPUT, event_lines),
)


async def measure(victim: Victim, flood: Flood, folder: Path, duration: float = DURATION) -> Times:
    """Floods a program, asks it questions meanwhile, and ends it."""
    path = folder / "vhost.sock"
    command = [executable(victim.name), *(option.format(folder=folder) for option in victim.options)]
    with ExitStack() as stack:
        program = stack.enter_context(listening([*command, "--log-level=error"], path))
        sock = stack.enter_context(connect(path))
        frontend = stack.enter_context(closing(Frontend(sock.dup())))
        memory = stack.enter_context(closing(SharedMemory(4 << 20)))
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
