"""A vhostd program started for a guest, as a service manager starts it: with a listening socket."""

import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

STOP_TIMEOUT = 10.0


class Backend:
    """A running program that listens at `path`; leaving the `with` block ends it and expects status 0."""

    def __init__(
        self,
        program: str,
        directory: Path,
        *options: str,
        name: str | None = None,
        launcher: Sequence[str] = (),
    ) -> None:
        name = name or program
        self.path = directory / f"{name}.sock"
        self._log = directory / f"{name}.log"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen()
        program_path = Path(sys.executable).with_name(program)
        self._command = [*launcher, str(program_path), f"--fd={self._listener.fileno()}", *options]
        self.process = self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close()
        self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        if kind is None:
            assert status == 0, self.log()

    def restart(self, *options: str, end: signal.Signals = signal.SIGTERM) -> None:
        """Ends the program with a signal and starts another, with more options, at the same socket."""
        self.process.send_signal(end)
        self.process.wait(STOP_TIMEOUT)
        self.process = self._start(*options)

    def _start(self, *options: str) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [*self._command, *options],
                pass_fds=[self._listener.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def log(self) -> str:
        """What the program has printed so far."""
        return self._log.read_text(errors="replace")


class EventSocket:
    """A client of vhost-user-input's --event-socket."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._socket.settimeout(STOP_TIMEOUT)
        self._file = self._socket.makefile("r")

    def send(self, events: Sequence[Sequence[int]]) -> None:
        """Sends [type, code, value] events."""
        lines = (f"E: 0.000000 {kind:04x} {code:04x} {value}\n" for kind, code, value in events)
        self._socket.sendall("".join(lines).encode())

    def receive(self) -> list[int]:
        """The next event that the guest's driver sent to the device."""
        _tag, _time, kind, code, value = self._file.readline().split()
        return [int(kind, 16), int(code, 16), int(value)]

    def close(self) -> None:
        """Disconnects."""
        self._file.close()
        self._socket.close()
