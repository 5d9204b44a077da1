"""One JSON object per line over a byte stream: how the host talks to the guest's agent and to QMP."""

import json
import socket
import time
from collections.abc import Sequence
from typing import Any

# The name of the virtio-serial port between the host and the agent.
AGENT_PORT = "org.vhostd.agent"

RECEIVE_SIZE = 65536


class Disconnected(Exception):
    """The other end closed the connection."""


def encode(message: dict[Any, Any]) -> bytes:
    """One line for one message."""
    return json.dumps(message).encode() + b"\n"


def decode(line: bytes) -> Any:
    """The message of one line.

    Keys that are decimal numbers come back as int: JSON has only string keys, and event types and
    axis numbers make natural keys.
    """
    return json.loads(line, object_pairs_hook=_with_integer_keys)


def _with_integer_keys(pairs: list[tuple[str, Any]]) -> dict[Any, Any]:
    return {int(key) if key.isdecimal() else key: value for key, value in pairs}


class JsonLines:
    """A connected stream socket that carries JSON lines; owns the socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._buffer = b""

    def send(self, message: dict[Any, Any], deadline: float, fds: Sequence[int] = ()) -> None:
        """Sends one message, with copies of `fds`.

        Raises TimeoutError past `deadline` (time.monotonic), Disconnected.
        """
        self._socket.settimeout(_seconds_until(deadline))
        line = encode(message)
        try:
            sent = socket.send_fds(self._socket, [line], fds) if fds else 0
            self._socket.sendall(line[sent:])
        except ConnectionError as error:
            raise Disconnected from error

    def receive(self, deadline: float) -> Any:
        """The next message. Raises TimeoutError past `deadline` (time.monotonic), Disconnected."""
        while b"\n" not in self._buffer:
            self._socket.settimeout(_seconds_until(deadline))
            try:
                data = self._socket.recv(RECEIVE_SIZE)
            except ConnectionError as error:
                raise Disconnected from error
            if not data:
                raise Disconnected
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return decode(line)

    def close(self) -> None:
        """Closes the connection; idempotent."""
        self._socket.close()


def _seconds_until(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
