"""The host's syslog: what its programs say there."""

import re
import socket
import time
from pathlib import Path
from typing import NamedTuple

from tests.programs import PATIENCE

MESSAGE = re.compile(r"<(\d+)>(?:\w{3} [ \d]\d \d\d:\d\d:\d\d )?([^:\[]+)(?:\[(\d+)\])?: (.*)", re.DOTALL)


class Line(NamedTuple):
    """A message: its severity (errors 3, warnings 4), the program's name and process, and what it says."""

    severity: int
    program: str
    pid: int
    text: str


class Syslog:
    """Takes the messages that are sent to `path` from now on."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        path.chmod(0o666)
        self._lines: list[Line] = []

    def close(self) -> None:
        """Takes no more."""
        self._socket.close()

    def lines(self, pid: int) -> list[Line]:
        """What a process has said so far."""
        self._socket.settimeout(0)
        try:
            while True:
                self._receive()
        except BlockingIOError:
            return [line for line in self._lines if line.pid == pid]

    def wait(self, text: str) -> Line:
        """Waits until some process has said something that contains `text`."""
        end = time.monotonic() + PATIENCE
        while not (found := [line for line in self._lines if text in line.text]):
            self._socket.settimeout(max(0.001, end - time.monotonic()))
            try:
                self._receive()
            except TimeoutError:
                raise AssertionError(f"{text!r} was never said, but {self._lines}") from None
        return found[0]

    def _receive(self) -> None:
        data = self._socket.recv(65536).decode().rstrip("\0\n")
        if parts := MESSAGE.fullmatch(data):
            priority, program, pid, text = parts.groups()
            self._lines.append(Line(int(priority) & 7, program, int(pid or 0), text))
