"""What sockets cost: vhost-user-vsock beside vhost-device-vsock, both behind one scripted driver.

    .venv/bin/python -m tests.bench.vsock [--rounds N] [--seconds S] [--peer COMMAND] [--json FILE]

COMMAND is the peer's, up to its options; by default it is looked for where contrib/peers.sh has put it.

The driver is a loop in this process, which keeps credit as Linux does: its receive buffers have 4 KiB, as
Linux' have, its packets 64 KiB. The host's end is another process, which reads or writes 256 KiB at a time.
CPU is all that the back-end's process has used meanwhile, for each byte.
"""

import argparse
import asyncio
import multiprocessing
import os
import select
import shlex
import signal
import socket
import struct
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from tests.bench.measure import Figure, cpu_time, save, table
from tests.programs import Program, executable, listens_at
from vhostd.frontend import Frontend, Queue, SharedMemory
from vhostd.frontend.drivers.vsock import (
    CREDIT_REQUEST,
    CREDIT_UPDATE,
    REQUEST,
    RESPONSE,
    RST,
    RW,
    SHUTDOWN,
    STREAM,
)

NAME, PEER = "vhost-user-vsock", "vhost-device-vsock"
PEERS = Path("~/.cache/vhostd/peers/root").expanduser()
CID, HOST = 9, 2
HEADER = struct.Struct("<QQIIIHHIII")
ROOM = 4096  # bytes of a receive buffer
PACKET = 1 << 16
BUF_ALLOC = 1 << 18
SIZE = 128  # of the rings
CHUNK = 1 << 18  # bytes that the host's end moves at once
SINK, SOURCE, ECHO = 1, 2, 3  # ports
PATIENCE = 5.0


def serve(path: str, port: int) -> None:
    """The host's end, in a process of its own."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{path}_{port}")
        listener.listen(4096)  # the driver may be faster than this
        buffer = bytearray(CHUNK)
        while True:
            client, _ = listener.accept()
            with client, suppress(OSError):
                serve_one(client, port, buffer)


def serve_one(client: socket.socket, port: int, buffer: bytearray) -> None:
    while True:
        if port == SOURCE:
            client.sendall(buffer)
        elif not (size := client.recv_into(buffer)):
            return
        elif port == ECHO:
            client.sendall(memoryview(buffer)[:size])


class Driver:
    """A guest's driver with one connection at a time, which waits by looking at its fds."""

    def __init__(self, memory: SharedMemory, rx: Queue, tx: Queue) -> None:
        self.memory, self.rx, self.tx = memory, rx, tx
        self._slots = [memory.allocate(HEADER.size + PACKET, 64) for _ in range(SIZE // 2)]
        self._busy: dict[int, int] = {}  # heads of tx: the slots
        self._rooms: dict[int, int] = {}  # heads of rx: the buffers
        for _ in range(SIZE):
            self._give(memory.allocate(ROOM, ROOM))
        rx.kick()
        self._poll = select.epoll()
        for queue in (rx, tx):
            self._poll.register(queue.call_fd, select.EPOLLIN)
        self.local_port = 1000
        self.port = 0
        self._begin(0)

    def _begin(self, port: int) -> None:
        self.port = port
        self.local_port += 1
        self.received = self.announced = self.sent = 0
        self.peer_alloc = self.peer_fwd = 0
        self.owes_credit = False
        self.ops: set[int] = set()

    def connect(self, port: int) -> None:
        """Connects to a port of the host."""
        self._begin(port)
        self.tell(REQUEST)
        self.until(lambda: RESPONSE in self.ops)

    def close(self) -> None:
        """Closes the connection, and waits for the answer."""
        self.tell(SHUTDOWN, flags=3)
        self.until(lambda: RST in self.ops)

    def tell(self, op: int, size: int = 0, flags: int = 0) -> None:
        """Sends a packet, with so many bytes of whatever is in its slot."""
        self.until(lambda: bool(self._slots))
        slot = self._slots.pop()
        self.announced, self.owes_credit = self.received, False
        fields = (
            CID,
            HOST,
            self.local_port,
            self.port,
            size,
            STREAM,
            op,
            flags,
            BUF_ALLOC,
            self.received % 2**32,
        )
        self.memory.map.write(slot, HEADER.pack(*fields))
        self._busy[self.tx.driver.add([(slot, HEADER.size + size, False)])] = slot
        self.sent += size
        self.tx.kick()

    @property
    def credit(self) -> int:
        return self.peer_alloc - (self.sent - self.peer_fwd) % 2**32

    def until(self, condition: Callable[[], bool]) -> None:
        """Serves the rings until this is so."""
        end = time.monotonic() + PATIENCE
        while not condition():
            if not self.collect() and not self._arm():
                for fd, _ in self._poll.poll(1):
                    os.eventfd_read(fd)
                if time.monotonic() > end:
                    raise TimeoutError

    def collect(self) -> bool:
        """Takes what the device has used; whether there was something."""
        some = self._reclaim()
        self._tell_of_credit()
        while (used := self.rx.driver.used()) is not None:
            some = True
            self._take(self._rooms.pop(used[0]), used[1])
            self._tell_of_credit()
        if some:
            self.rx.kick()
        return some

    def _reclaim(self) -> bool:
        """Takes back the slots that the device has sent; whether there were some."""
        before = len(self._slots)
        while (used := self.tx.driver.used()) is not None:
            self._slots.append(self._busy.pop(used[0]))
        return len(self._slots) > before

    def _tell_of_credit(self) -> None:
        """Tells what is owed, or does it later if the device has all slots. To forget it would end it all."""
        if self.owes_credit and (self._slots or self._reclaim()):
            self.tell(CREDIT_UPDATE)

    def _take(self, room: int, written: int) -> None:
        header = HEADER.unpack(self.memory.map.read(room, HEADER.size))
        self._give(room)
        if header[3] != self.local_port:
            return
        op = header[6]
        self.ops.add(op)
        self.peer_alloc, self.peer_fwd = header[8], header[9]
        self.received += written - HEADER.size
        if op == CREDIT_REQUEST or self.received - self.announced > BUF_ALLOC * 3 // 4:
            self.owes_credit = True

    def _give(self, room: int) -> None:
        self._rooms[self.rx.driver.add([(room, ROOM, True)])] = room

    def _arm(self) -> bool:
        return bool(self.rx.driver.arm()) | bool(self.tx.driver.arm())


@dataclass
class Server:
    """A running back-end, and what was measured of it."""

    program: Program
    driver: Driver
    samples: dict[str, list[float]] = field(default_factory=dict)

    def note(self, what: str, value: float) -> None:
        self.samples.setdefault(what, []).append(value)

    def measure(self, seconds: float) -> None:
        """One round, in which the program runs. It stands still otherwise, and costs the other nothing."""
        os.kill(self.program.pid, signal.SIGCONT)
        try:
            self._measure(seconds)
        finally:
            os.kill(self.program.pid, signal.SIGSTOP)

    def _measure(self, seconds: float) -> None:
        for what, port in (("to the host", SINK), ("to the guest", SOURCE)):
            self.driver.connect(port)
            before, begin = cpu_time(self.program.pid), time.perf_counter()
            moved = self._move(port, begin + seconds)
            elapsed = time.perf_counter() - begin
            self.note(f"{what}, MB/s", moved / elapsed / 1e6)
            self.note(f"{what}, CPU ns per KiB", (cpu_time(self.program.pid) - before) / moved * 1024e9)
            self.driver.close()
        self.note("echo of a byte, us", self._ping(seconds / 2))
        self.note("connections per second", self._connect(seconds / 2))

    def _move(self, port: int, end: float) -> int:
        driver = self.driver
        if port == SINK:
            while time.perf_counter() < end:
                driver.until(lambda: driver.credit > 0)
                driver.tell(RW, min(PACKET, driver.credit))
            return driver.sent
        driver.until(lambda: time.perf_counter() > end)
        return driver.received

    def _ping(self, seconds: float) -> float:
        driver = self.driver
        driver.connect(ECHO)
        begin = time.perf_counter()
        while time.perf_counter() < begin + seconds:
            driver.tell(RW, 1)
            driver.until(lambda: driver.received == driver.sent)
        elapsed = time.perf_counter() - begin
        driver.close()
        return elapsed / driver.sent * 1e6

    def _connect(self, seconds: float) -> float:
        count, begin = 0, time.perf_counter()
        while time.perf_counter() < begin + seconds:
            self.driver.connect(SINK)
            self.driver.close()
            count += 1
        return count / (time.perf_counter() - begin)


def start(stack: ExitStack, folder: Path, command: list[str], loop: asyncio.AbstractEventLoop) -> Server:
    """Starts a back-end with its servers on the host, and a driver."""
    folder.mkdir()
    for port in (SINK, SOURCE, ECHO):
        server = multiprocessing.Process(target=serve, args=(str(folder / "vm"), port), daemon=True)
        server.start()
        stack.callback(server.kill)
    words = [word.format(socket=folder / "socket") for word in command]
    program = stack.enter_context(Program([*words, f"--guest-cid={CID}", f"--uds-path={folder / 'vm'}"]))
    while not listens_at(folder / "socket"):
        time.sleep(0.01)
    memory = SharedMemory(32 << 20)
    stack.callback(memory.close)
    frontend, rx, tx = loop.run_until_complete(set_up(folder / "socket", memory))
    stack.callback(frontend.close)
    return Server(program, Driver(memory, rx, tx))


async def set_up(path: Path, memory: SharedMemory) -> tuple[Frontend, Queue, Queue]:
    frontend = await Frontend.connect(str(path))
    await frontend.negotiate()
    await frontend.share(memory)
    rx, tx = [await frontend.start(memory, index, SIZE) for index in range(2)]
    return frontend, rx, tx


def peer_command(given: str | None) -> list[str]:
    """How the peer is started."""
    if given is not None:
        return shlex.split(given)
    libraries = ":".join(str(PEERS / part) for part in ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"))
    loader = PEERS / "lib64/ld-linux-x86-64.so.2"
    return [str(loader), "--library-path", libraries, str(PEERS / "usr/bin" / PEER)]


def figures(ours: Server, theirs: Server) -> list[Figure]:
    """Medians of all rounds, beside the peer's."""
    made = []
    for what, samples in ours.samples.items():
        what, unit = what.rsplit(", ", 1) if ", " in what else (what, "")
        key = f"{what}, {unit}" if unit else what
        smaller = "CPU" in unit or unit == "us"
        bounds = {"limit": 1.0} if smaller else {"least": 1.0}
        made.append(Figure(NAME, what, unit, median(samples), median(theirs.samples[key]), **bounds))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--peer")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    loop = asyncio.new_event_loop()
    with ExitStack() as stack, TemporaryDirectory(prefix="bench-") as folder:
        commands = {
            NAME: [executable(NAME), "--socket-path={socket}"],
            PEER: [*peer_command(options.peer), "--socket={socket}"],
        }
        servers = {
            name: start(stack, Path(folder, name), command, loop) for name, command in commands.items()
        }
        for _ in range(options.rounds):
            for server in servers.values():
                server.measure(options.seconds)
        found = figures(servers[NAME], servers[PEER])
        print(table(found))
        if options.json:
            save(options.json, found)


if __name__ == "__main__":
    main()
