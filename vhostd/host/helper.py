"""Helper: a process beside a program, for work that needs more rights than the program keeps, or may crash.

The program is in a sandbox when it needs a new helper, and can start none. So a spawner is started before
(spawner.py), which does nothing else.
"""

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence

from vhostd.errors import SetupError
from vhostd.host.grants import Grants
from vhostd.host.spawner import STATUS
from vhostd.wire.fds import Fd
from vhostd.wire.packets import send_packet

log = logging.getLogger(__name__)

LINES = 4096  # bytes of what helpers print that are read at a time
LINES_PAUSE = 1.0  # seconds until more of it is read


class Helper:
    """Runs `python -m MODULE FD ARGUMENTS`, one process at a time, whenever somebody connects.

    FD is a socket of the new process that keeps packets apart. What the processes print is logged, as long as
    it is not much.
    """

    def __init__(
        self,
        name: str,
        module: str,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Starts the spawner; raises SetupError. The log calls a process by its `name`."""
        self._name = name
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lines, printed = (Fd(fd) for fd in os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK))
        self._loop: asyncio.AbstractEventLoop | None = None
        with theirs, printed:
            try:
                _start_spawner(theirs, printed, [module, *arguments], environment or {})
            except SetupError:
                self.close()
                raise

    @staticmethod
    def grants() -> Grants:
        """What `connect` takes in the sandbox."""
        return Grants(sockets=((socket.AF_UNIX, socket.SOCK_SEQPACKET),))

    def connect(self) -> socket.socket:
        """Starts a new process, and ends the one before; the socket is closed at its end if there is none."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._tell(b"+", (theirs.fileno(),))
        return ours

    def end(self) -> None:
        """Ends the process that runs, if there is one, whatever it is at."""
        self._tell(b"-", ())

    def last_line(self) -> str:
        """The last line that was printed, if it has not been logged: why a process ends at its start."""
        lines = _received(self._lines.fileno(), LINES).decode(errors="replace").splitlines()
        return lines[-1] if lines else ""

    def listen(self) -> None:
        """Logs from now on how processes end, and what they print; the event loop runs."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(self._control, self._hear_end)
            self._loop.add_reader(self._lines.fileno(), self._hear_lines)

    def close(self) -> None:
        """Ends the spawner, and with it the process; idempotent."""
        if self._loop is not None and not self._loop.is_closed() and self._lines:
            self._loop.remove_reader(self._control)
            self._loop.remove_reader(self._lines.fileno())
        self._control.close()
        self._lines.close()

    def _tell(self, what: bytes, fds: tuple[int, ...]) -> None:
        try:
            send_packet(self._control, what, fds, socket.MSG_DONTWAIT)
        except OSError as error:  # whoever has connected sees that there is nobody
            log.error("the %s's spawner: %s", self._name, error.strerror)

    def _hear_end(self) -> None:
        if not (data := _received(self._control.fileno(), STATUS.size)):
            if self._loop is not None:
                self._loop.remove_reader(self._control)
            log.error("the %s's spawner has ended: there will be no other %s", self._name, self._name)
            return
        (status,) = STATUS.unpack(data)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) != signal.SIGKILL:
            log.error("the %s was ended by %s", self._name, signal.Signals(os.WTERMSIG(status)).name)
        elif os.WIFEXITED(status) and os.WEXITSTATUS(status):
            log.error("the %s has ended with status %d", self._name, os.WEXITSTATUS(status))

    def _hear_lines(self) -> None:
        """Logs what was printed. A guest may be able to cause any amount of that, so most may be lost."""
        loop, fd = self._loop, self._lines.fileno()
        if loop is None:
            return
        loop.remove_reader(fd)
        data = _received(fd, LINES)
        for line in data.decode(errors="replace").splitlines():
            log.info("%s: %s", self._name, line)
        if data:
            loop.call_later(LINES_PAUSE, self._hear_more)

    def _hear_more(self) -> None:
        if self._loop is not None and self._lines:
            self._loop.add_reader(self._lines.fileno(), self._hear_lines)


def _received(fd: int, most: int) -> bytes:
    """What has come; nothing if the other side is gone."""
    try:
        return os.read(fd, most)
    except OSError:
        return b""


def _start_spawner(
    control: socket.socket, printed: Fd, arguments: Sequence[str], environment: Mapping[str, str]
) -> None:
    """Starts the spawner with its control socket, nothing to read, and a pipe to print to."""
    os.set_inheritable(control.fileno(), True)
    module = ["-m", "vhostd.host.spawner", str(control.fileno())]
    try:
        os.posix_spawn(
            sys.executable,
            [sys.executable, "-P", *module, *arguments],
            {**os.environ, **environment, "PYTHONPATH": os.pathsep.join(sys.path)},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, printed.fileno(), 1),
                (os.POSIX_SPAWN_DUP2, printed.fileno(), 2),
            ],
            setsid=True,  # a terminal's signals are for the program alone
            setsigmask=(),
            setsigdef=(signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2),
        )
    except OSError as error:
        raise SetupError(f"{sys.executable}: {error.strerror}") from None
