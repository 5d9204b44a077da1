"""vhostd's programs as children of the tests, started in every way that a user or a launcher has."""

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from vhostd.vhost_user.messages import GET_FEATURES
from vhostd.wire.framing import HEADER, VERSION
from vhostd.wire.rows import U64

PROGRAMS = {  # each of ours, and the type of its device
    "vhost-user-blk": "block",
    "vhost-user-console": "console",
    "vhost-user-gpu": "gpu",
    "vhost-user-input": "input",
    "vhost-user-net": "net",
    "vhost-user-rng": "rng",
    "vhost-user-vsock": "vsock",
}
NEEDED = {  # the option that one does not start without
    "vhost-user-blk": "--ram=16M",
    "vhost-user-input": "--event-socket={folder}/events",
    "vhost-user-net": "--stream={folder}/passt",
    "vhost-user-vsock": "--uds-path={folder}/vm",
}
STARTS = 3
TRIES = 5
SHORTEST_START = 0.01  # seconds in which Python starts and ends on a fast machine
PATIENCE = 20.0  # seconds for what takes milliseconds: it only bounds how long a broken program is waited for
SETTINGS_OF_PYTHON = ("PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE", "PYTHONWARNINGS", "PYTHONPATH")
FOR_LAUNCHED_PROGRAMS = (
    *("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"),
    *("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"),
)


def executable(name: str) -> str:
    """The installed program of that name, beside the Python that runs the tests."""
    return str(Path(sys.executable).with_name(name))


def needed_options(program: str, folder: Path | str) -> list[str]:
    """What a program of ours does not start without, beside a socket. What it makes is in the folder."""
    return [NEEDED[program].format(folder=folder)] if program in NEEDED else []


def environment(changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """A user's environment: without what only developers set, and without the tests' own service manager."""
    dropped = {*SETTINGS_OF_PYTHON, *FOR_LAUNCHED_PROGRAMS}
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    # A sanitizer or a tracer that the tests run under would need it; a user's program does not.
    kept.pop("LD_PRELOAD", None)
    return kept | dict(changes or {})


def on_this_machine(seconds: float) -> float:
    """What takes at most so many seconds on an idle machine may take so many on this one, at this moment.

    That is as many times more as Python needs to start and end.
    """
    begin = time.monotonic()
    for _ in range(STARTS):
        subprocess.run([sys.executable, "-c", ""], check=True)
    return seconds * max(1.0, (time.monotonic() - begin) / (STARTS * SHORTEST_START))


def is_quick(limit: float, measure: Callable[[], float]) -> bool:
    """Whether something takes no more seconds than it may on an idle machine.

    `measure` does it, and says how many it took. One of several tries has to be as quick, since on a busy
    machine any program waits at times.
    """
    return any(measure() < on_this_machine(limit) for _ in range(TRIES))


class Program:
    """A running child whose stderr is captured; killed and reaped when the `with` block ends."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        fds: Sequence[int] = (),
        env: Mapping[str, str] | None = None,
        stdin: int = subprocess.DEVNULL,
        stdout: int = subprocess.DEVNULL,
        stderr: int = subprocess.PIPE,
        cwd: str | None = None,
    ) -> None:
        self.process = subprocess.Popen(
            list(command),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            pass_fds=fds,
            env=environment(env),
            cwd=cwd,
        )
        self.pid = self.process.pid
        self._heard = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()

    @property
    def proc(self) -> Path:
        """The child's directory in /proc."""
        return Path("/proc", str(self.pid))

    def send(self, number: int = signal.SIGTERM) -> None:
        """Sends a signal."""
        self.process.send_signal(number)

    def wait(self) -> int:
        """The exit status, once it has ended."""
        return self.process.wait(PATIENCE)

    def ends(self) -> tuple[int, list[str]]:
        """The exit status, and the rest of the lines on stderr."""
        _, heard = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, (self._heard + heard).decode().splitlines()

    def stop(self, number: int = signal.SIGTERM) -> float:
        """Ends it with a signal; the seconds until it was gone. AssertionError unless its status is 0."""
        start = time.monotonic()
        self.send(number)
        status = self.wait()
        took = time.monotonic() - start
        assert status == 0
        return took

    def hear(self, text: str) -> str:
        """Waits for a line on stderr that contains `text`, skipping others, and returns it."""
        while True:
            line, newline, rest = self._heard.partition(b"\n")
            if newline:
                self._heard = rest
                if text.encode() in line:
                    return line.decode()
                continue
            assert self.process.stderr is not None
            fd = self.process.stderr.fileno()
            assert select.select([fd], [], [], PATIENCE)[0], f"{text!r} was never said"
            more = os.read(fd, 65536)
            assert more, f"the program ended without saying {text!r}: {self._heard!r}"
            self._heard += more

    def fds(self) -> dict[int, str]:
        """Its open fds and what they are; one that it closes meanwhile may be missing."""
        found = {}
        for entry in (self.proc / "fd").iterdir():
            with suppress(FileNotFoundError):
                found[int(entry.name)] = os.readlink(entry)
        return found

    def mappings(self) -> list[str]:
        """Its mappings, as /proc has them."""
        return (self.proc / "maps").read_text().splitlines()

    def resident(self) -> int:
        """Its resident memory in KiB."""
        return int(self.status("VmRSS").split()[0])

    def status(self, field: str) -> str:
        """A field of its /proc status."""
        lines = (self.proc / "status").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith(f"{field}:"))

    def until(self, reached: Callable[[Self], bool]) -> None:
        """Looks again and again until `reached`; for what the kernel gives no event for."""
        end = time.monotonic() + PATIENCE
        while not reached(self):
            assert self.process.poll() is None, f"ended before, with status {self.process.returncode}"
            assert time.monotonic() < end, "never reached"
            os.sched_yield()


@contextmanager
def connected(command: Sequence[str], **how: object) -> Iterator[tuple[Program, socket.socket]]:
    """A program started with --fd, and the front-end's end of its connection."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        arguments = [*command, f"--fd={theirs.fileno()}"]
        with Program(arguments, fds=[theirs.fileno()], **how) as program:  # type: ignore[arg-type]  # passed on
            theirs.close()
            ours.settimeout(PATIENCE)
            yield program, ours


@contextmanager
def listening(command: Sequence[str], path: Path, **how: object) -> Iterator[Program]:
    """A program started with --socket-path, once it listens there."""
    with Program([*command, f"--socket-path={path}"], **how) as program:  # type: ignore[arg-type]  # passed on
        program.until(lambda _: listens_at(path))
        yield program


def listens_at(path: Path) -> bool:
    """Whether a socket listens at `path`; asks the kernel, because a connection would be noticed."""
    lines = Path("/proc/net/unix").read_text().splitlines()[1:]
    # Num, RefCount, Protocol, Flags (10000: it listens), Type, St, Inode, Path
    sockets = [fields for line in lines if len(fields := line.split(maxsplit=7)) == 8]
    return any(fields[7] == str(path) and fields[3] == "00010000" for fields in sockets)


class Manager:
    """A service manager's end of sd_notify: what the programs tell."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        address: bytes = sock.getsockname()
        self.name = "@" + address[1:].decode()

    def next(self) -> list[str]:
        """The lines of the next datagram."""
        return self._socket.recv(4096).decode().split("\n")

    def next_is_last(self) -> None:
        """Leaves room for one datagram more, at most: the start's."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, suppress(BlockingIOError):
            sock.connect(self._socket.getsockname())
            while True:
                sock.send(b"unheard", socket.MSG_DONTWAIT)
        self.next()

    def until(self, line: str) -> None:
        """Waits for a line, skipping others."""
        while line not in self.next():
            pass


@contextmanager
def notified() -> Iterator[Manager]:
    """A service manager to pass as NOTIFY_SOCKET."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("")  # the kernel picks an abstract name
        sock.settimeout(PATIENCE)
        yield Manager(sock)


def connect(path: str | Path) -> socket.socket:
    """Connects to a program that listens at `path`."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(PATIENCE)
    sock.connect(str(path))
    return sock


def get_features(sock: socket.socket) -> int:
    """One round trip: asks for the features, which any program answers once it serves."""
    sock.sendall(HEADER.pack(GET_FEATURES.request, VERSION, 0))
    reply = b""
    while len(reply) < HEADER.size + U64.SIZE:
        data = sock.recv(HEADER.size + U64.SIZE - len(reply))
        if not data:
            raise ConnectionResetError("the program closed the connection")
        reply += data
    return U64.unpack(reply[HEADER.size :]).value


def is_refused(sock: socket.socket) -> bool:
    """Waits for what the program does with a connection; whether it closes it without a word."""
    try:
        get_features(sock)
    except (ConnectionResetError, BrokenPipeError):
        return True
    return False
