"""A blocking QMP client: commands, and waiting for events."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from tests.guest.jsonlines import JsonLines

QMP_TIMEOUT = 20.0


class QmpError(Exception):
    """QEMU refused a command."""


class Qmp:
    """One QMP connection; owns `channel`. Events are kept until somebody waits for them."""

    def __init__(self, channel: JsonLines) -> None:
        self._channel = channel
        self._events: list[dict[str, Any]] = []

    def negotiate(self, timeout: float = QMP_TIMEOUT) -> None:
        """Leaves the capabilities mode that every connection starts in."""
        self._channel.receive(time.monotonic() + timeout)  # QEMU's greeting
        self.execute("qmp_capabilities", timeout=timeout)

    def execute(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        timeout: float = QMP_TIMEOUT,
        fds: Sequence[int] = (),
    ) -> Any:
        """Runs `command`, which gets copies of `fds`, and returns its result.

        Raises QmpError, TimeoutError, Disconnected.
        """
        deadline = time.monotonic() + timeout
        self._channel.send({"execute": command, "arguments": dict(arguments or {})}, deadline, fds)
        while True:
            message = self._channel.receive(deadline)
            if "event" in message:
                self._events.append(message)
            elif "error" in message:
                raise QmpError(f"{command}: {message['error']['desc']}")
            else:
                return message["return"]

    def wait_event(self, name: str, timeout: float = QMP_TIMEOUT, **data: Any) -> dict[str, Any]:
        """The data of the first event `name` that has these data members; other events are kept."""
        deadline = time.monotonic() + timeout
        seen = 0
        while True:
            for index, event in enumerate(self._events[seen:], seen):
                if event["event"] == name and data.items() <= event.get("data", {}).items():
                    del self._events[index]
                    found: dict[str, Any] = event.get("data", {})
                    return found
            seen = len(self._events)
            self._events.append(self._channel.receive(deadline))

    def forget_events(self) -> None:
        """Drops the events received so far, so that a wait sees only later ones."""
        self._events.clear()

    def close(self) -> None:
        """Closes the connection; idempotent."""
        self._channel.close()
