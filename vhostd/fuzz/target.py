"""The back-end that is tested: a process of a user's command, and what can be seen of it from outside."""

import os
import select
import shlex
import signal
import socket
import subprocess
from contextlib import suppress
from pathlib import Path

from vhostd.errors import SetupError, UsageError
from vhostd.fuzz.patience import Patience
from vhostd.host.syscall import PRCTL, syscall
from vhostd.vhost_user.messages import GET_FEATURES
from vhostd.wire.framing import HEADER, VERSION
from vhostd.wire.rows import U64

SOCKET, FOLDER = "{socket}", "{folder}"
END = 5.0  # seconds from SIGTERM to SIGKILL
PR_SET_PDEATHSIG = 1
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Target:
    """Starts the command in `folder`, as often as it takes, and connects to it.

    In the command, {socket} is the path of its socket, and {folder} the folder.
    """

    def __init__(self, command: str, folder: Path) -> None:
        """Raises UsageError for a command that names no socket."""
        if SOCKET not in command:
            raise UsageError(f"{command}: a command needs {SOCKET} in place of its socket's path")
        self._path = folder / "vhost.sock"
        places = {SOCKET: str(self._path), FOLDER: str(folder)}
        self._words = [_replaced(word, places) for word in shlex.split(command)]
        self._errors = folder / "stderr"
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._end = select.poll()  # tells of the process's end

    @property
    def pid(self) -> int:
        """The process that was started last."""
        return self._process.pid if self._process else 0

    @property
    def status(self) -> int | None:
        """How it ended, negative for a signal; None while it runs."""
        return self._process.poll() if self._process else 0

    def start(self) -> None:
        """Starts it anew. It may take a while until it can be reached. Raises SetupError."""
        self.stop()
        self._errors.write_bytes(b"")
        for path in self._sockets():
            path.unlink()
        with open(self._errors, "ab") as errors:
            try:
                self._process = subprocess.Popen(
                    self._words,
                    stdin=subprocess.DEVNULL,
                    stdout=errors,
                    stderr=errors,
                    start_new_session=True,
                    preexec_fn=_end_with_us,
                )
            except OSError as error:
                raise SetupError(f"{self._words[0]} cannot be started: {error.strerror}") from None
        self._pidfd = os.pidfd_open(self.pid)
        self._end = select.poll()
        self._end.register(self._pidfd, select.POLLIN)

    def stop(self) -> None:
        """Ends it, and all that it has started; idempotent."""
        if self._process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGTERM)
        if not self.ends_within(END):
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._pidfd)
        self._process = None

    def ends_within(self, seconds: float) -> bool:
        """Waits so long for its end; whether it has ended."""
        return bool(self._end.poll(seconds * 1000))

    def listens(self, seconds: float) -> None:
        """Waits until it has a socket, or has ended. Raises TimeoutError."""
        patience = Patience(seconds, self.pid)
        while self.status is None and not self._sockets():
            if not patience.wait(self._end) and patience.is_over:
                raise TimeoutError(f"it has made no socket within {seconds:g} s")

    def dial(self) -> socket.socket:
        """A connection to it. Raises OSError if it does not take one now."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            sock.connect(str(next(iter(self._sockets()), self._path)))
        except OSError:
            sock.close()
            raise
        return sock

    def reach(self, seconds: float) -> socket.socket:
        """A connection that it serves: GET_FEATURES was answered on it.

        It may turn connections away while it is busy with the end of the last one. TimeoutError if there
        is no answer for so long, ConnectionError if the process has ended.
        """
        patience = Patience(seconds, self.pid)
        while self.status is None:
            sock = None
            try:
                sock = self.dial()
                if _is_served(sock, patience):
                    return sock
            except OSError:
                pass
            if sock is not None:
                sock.close()
            if not patience.wait(self._end) and patience.is_over:
                raise TimeoutError("no answer to GET_FEATURES")
        raise ConnectionResetError("the process has ended")

    def _sockets(self) -> list[Path]:
        """Its socket, or what it has made of the path: some add a number."""
        return sorted(path for path in self._path.parent.glob(f"{self._path.name}*") if path.is_socket())

    # --- What can be seen of it ---------------------------------------------------------------------------

    def fds(self) -> int:
        """How many fds it has; 0 if they may not be seen."""
        try:
            return len(os.listdir(f"/proc/{self.pid}/fd"))
        except OSError:
            return 0

    def resident(self) -> int:
        """Bytes of memory that it occupies."""
        with suppress(OSError, IndexError), open(f"/proc/{self.pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE
        return 0

    def busy(self) -> float:
        """Seconds of processor time that it has used."""
        with suppress(OSError, IndexError), open(f"/proc/{self.pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
            return (int(fields[11]) + int(fields[12])) / _TICKS
        return 0.0

    def said(self) -> list[str]:
        """The lines that it has written since this was last asked, on stdout and stderr."""
        if not self._errors.stat().st_size:
            return []
        text = self._errors.read_bytes().decode(errors="replace")
        os.truncate(self._errors, 0)
        return text.splitlines()

    def last_words(self) -> str:
        """The last line that it has written."""
        return (self.said() or ["it said nothing"])[-1]


def _replaced(word: str, places: dict[str, str]) -> str:
    for place, path in places.items():
        word = word.replace(place, path)
    return word


def _end_with_us() -> None:
    """Runs in the child, before its program: the kernel is to end it with its parent."""
    syscall(PRCTL, PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _is_served(sock: socket.socket, patience: Patience) -> bool:
    sock.send(HEADER.pack(GET_FEATURES.request, VERSION, 0))
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    while not patience.wait(poll):
        if patience.is_over:
            return False
    return bool(sock.recv(HEADER.size + U64.SIZE))
