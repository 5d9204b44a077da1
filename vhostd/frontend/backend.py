"""A back-end program of anybody's, in C or Rust or Python, started with a socket of its own."""

import asyncio
import os
import shlex
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Self

from vhostd.errors import SetupError, UsageError
from vhostd.frontend.connecting import connected
from vhostd.frontend.frontend import Frontend
from vhostd.frontend.pipe import readable
from vhostd.host.signals import signal_name
from vhostd.wire.fds import Fd, close_all

PATIENCE = 10.0  # seconds
OUTPUT_SIZE = 1 << 16  # bytes that are kept of what a program says
LAST_LINES = 3  # of them in an error
PAUSES = (0.001, 0.05)  # seconds between attempts to connect: the first, and the longest


class Backend:
    """Starts a program for an `async with` block, and kills it, and all that it has started, at its end.

    `command` is a command line, which is split as a shell does, or its words. The program must stay in the
    foreground. Its socket is one of these:

        {socket}    the path of a socket that the program makes, or of one that it makes of the path: `PATH0`
        {listener}  the number of an fd, of a socket that listens
        {fd}        the number of an fd, of the one connection that there will be

    {folder} is a fresh folder for what else it makes, where {socket} is too. For example:

        vhost-user-rng --socket-path={socket}
        vhost-device-rng --socket-path={socket} --socket-count=1
        virtiofsd --shared-dir={folder} --fd={listener}
        /usr/lib/qemu/vhost-user-gpu --fd={fd}

    `patience` is how many seconds it may take to listen, and to end; the front-ends get it too. A program
    that cannot be started, or ends before it serves, is a SetupError with what it has said.
    """

    def __init__(
        self,
        command: str | Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        patience: float = PATIENCE,
    ) -> None:
        self.command = shlex.split(command) if isinstance(command, str) else list(command)
        self.patience = patience
        if not any(map(self._has, ("{socket}", "{listener}", "{fd}"))):
            words = " ".join(self.command)
            raise UsageError(f"{words}: a command needs {{socket}} in place of its socket's path, or {{fd}}")
        self._env, self._cwd = env, cwd
        self._folder: TemporaryDirectory[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._output: Fd | None = None
        self._said = bytearray()
        self._connection: socket.socket | None = None

    async def __aenter__(self) -> Self:
        self._folder = TemporaryDirectory(prefix="backend-")
        try:
            self._start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def folder(self) -> Path:
        """The fresh folder, which is removed in the end."""
        if self._folder is None:
            raise UsageError("a Backend is started by `async with`")
        return Path(self._folder.name)

    @property
    def pid(self) -> int:
        """The process."""
        return self._running.pid

    @property
    def status(self) -> int | None:
        """Its exit status, or minus the signal that has ended it; None while it runs."""
        return self._running.poll()

    @property
    def output(self) -> str:
        """The last 64 KiB of what it has said since it was started last, on stdout and stderr."""
        self._drain()
        return self._said.decode(errors="replace")

    def sockets(self) -> list[Path]:
        """Its socket, if there is one, or what it has made of the path: some add a number."""
        return sorted(self.folder.glob(f"{self._path.name}*"))

    async def connect(self) -> Frontend:
        """A front-end on a new connection, as soon as the program listens. The caller closes it."""
        return Frontend(await self.open(), patience=self.patience)

    async def open(self) -> socket.socket:
        """As `connect`, for who speaks by himself: the connection alone."""
        if self._has("{fd}"):
            if self._connection is None:
                raise UsageError("a program with {fd} has a single connection")
            ours, self._connection = self._connection, None
            return ours
        try:
            async with asyncio.timeout(self.patience):
                return await self._connected()
        except TimeoutError:
            raise SetupError(self._complaint(f"made no socket for {self.patience} s")) from None

    @property
    def listens_since(self) -> int:
        """When it has made its socket: a time in ns, for `listens_anew`; 0 if there is none."""
        with suppress(FileNotFoundError):
            return max((path.stat().st_ctime_ns for path in self.sockets()), default=0)
        return 0

    async def listens_anew(self, since: int) -> None:
        """Waits until it has made a socket after `since`, or has ended; TimeoutError past the patience."""
        async with asyncio.timeout(self.patience):
            while self.status is None and self.listens_since <= since:
                await self._rest(PAUSES[0])

    def send(self, number: int) -> None:
        """Sends it a signal."""
        self._running.send_signal(number)

    async def ended(self) -> int:
        """Its `status`, once it has ended; TimeoutError when the patience is over."""
        async with asyncio.timeout(self.patience):
            while (status := self.status) is None:
                with Fd(os.pidfd_open(self.pid)) as process:
                    await readable(process.fileno())
        return status

    async def stop(self) -> int:
        """Ends it by SIGTERM; its `status`, TimeoutError if it goes on."""
        self.send(signal.SIGTERM)
        return await self.ended()

    async def kill(self) -> None:
        """Kills it, and what it has started."""
        if self.status is None:
            os.killpg(self.pid, signal.SIGKILL)
            await self.ended()

    async def restart(self) -> None:
        """Kills it if it still runs, and starts it once more, with the same folder and no socket."""
        await self.kill()
        self._forget()
        for path in self.sockets():
            path.unlink()
        self._start()

    async def close(self) -> None:
        """Kills it and removes its folder; idempotent."""
        if self._process is not None:
            await self.kill()
        self._forget()
        if self._folder is not None:
            self._folder.cleanup()

    # --- The process ------------------------------------------------------------------------------------

    @property
    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise UsageError("a Backend is started by `async with`")
        return self._process

    def _start(self) -> None:
        places = {"{socket}": str(self._path), "{folder}": str(self.folder)}
        passed = []
        if self._has("{listener}"):
            passed.append(self._listener())
            places["{listener}"] = str(passed[-1].fileno())
        if self._has("{fd}"):
            self._connection, theirs = socket.socketpair()
            passed.append(Fd(theirs.detach()))
            places["{fd}"] = str(passed[-1].fileno())
        self._said.clear()
        self._output, said = map(Fd, os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC))
        os.set_blocking(said.fileno(), True)
        try:
            self._process = subprocess.Popen(
                [_replaced(word, places) for word in self.command],
                stdin=subprocess.DEVNULL,
                stdout=said.fileno(),
                stderr=said.fileno(),
                pass_fds=[fd.fileno() for fd in passed],
                env=self._env,
                cwd=self._cwd,
                start_new_session=True,  # a group of its own, to be killed with all that it starts
            )
        except OSError as error:
            raise SetupError(f"{self.command[0]}: {error.strerror}") from None
        finally:
            close_all((said, *passed))
        asyncio.get_running_loop().add_reader(self._output.fileno(), self._drain)

    def _has(self, place: str) -> bool:
        return any(place in word for word in self.command)

    def _listener(self) -> Fd:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.bind(str(self._path))
        sock.listen()
        return Fd(sock.detach())

    def _forget(self) -> None:
        """Lets go of the pipe, and of a connection that nobody has asked for."""
        self._drain()
        self._unwatch()
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _drain(self) -> None:
        """Takes what it has said."""
        try:
            while self._output:
                if not (data := os.read(self._output.fileno(), OUTPUT_SIZE)):
                    self._unwatch()
                self._said += data
                del self._said[:-OUTPUT_SIZE]
        except BlockingIOError:
            pass

    def _unwatch(self) -> None:
        if self._output:
            asyncio.get_running_loop().remove_reader(self._output.fileno())
            self._output.close()

    # --- Its socket -------------------------------------------------------------------------------------

    @property
    def _path(self) -> Path:
        return self.folder / "vhost.sock"

    async def _connected(self) -> socket.socket:
        """Tries again and again, since nobody tells when a program listens, but when it has ended."""
        pause, longest = PAUSES
        while self.status is None:
            for path in self.sockets():
                with suppress(FileNotFoundError, ConnectionRefusedError, BlockingIOError):
                    return await connected(path, self.patience)
            await self._rest(pause)
            pause = min(2 * pause, longest)
        raise SetupError(self._complaint(_ending(self.status)))

    async def _rest(self, pause: float) -> None:
        """Waits so long, or until the program has ended."""
        with suppress(TimeoutError), Fd(os.pidfd_open(self.pid)) as process:
            async with asyncio.timeout(pause):
                await readable(process.fileno())

    def _complaint(self, what: str) -> str:
        said = " / ".join(self.output.splitlines()[-LAST_LINES:])
        return f"{self.command[0]} {what}" + (f", and has said: {said}" if said else "")


def _replaced(word: str, places: Mapping[str, str]) -> str:
    for place, value in places.items():
        word = word.replace(place, value)
    return word


def _ending(status: int | None) -> str:
    if status is not None and status < 0:
        return f"was ended by {signal_name(-status)}"
    return f"has ended with status {status}"
