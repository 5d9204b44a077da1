"""The service manager: its sockets for this program, and messages to it (sd_listen_fds(3), sd_notify(3))."""

import asyncio
import logging
import os
import socket
from contextlib import suppress
from functools import partial

from vhostd.errors import SetupError
from vhostd.host.threads import Threads
from vhostd.wire.fds import Fd, close_all

VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")
MOST_UNHEARD = 16  # messages that wait for a busy service manager; further ones are lost
PATIENCE = 0.05  # seconds that the last message may take

log = logging.getLogger(__name__)


def activated_fd() -> Fd | None:
    """The one socket passed by systemd, listening or connected; None if this process was not activated.

    Removes systemd's variables from the environment, so that children do not use them.
    """
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return None
    from systemd.daemon import listen_fds  # imported here, so that other starts do not load libsystemd

    count = os.environ.get("LISTEN_FDS")
    try:
        fds = [Fd(number) for number in listen_fds(unset_environment=True)]
    except OSError as error:
        raise SetupError(f"LISTEN_FDS={count}: {error.strerror}") from None
    finally:
        for name in VARIABLES:  # libsystemd changes the process's environment, not Python's copy
            os.environ.pop(name, None)
    if len(fds) != 1:
        close_all(fds)
        raise SetupError(f"systemd passed {len(fds)} sockets, not one")
    os.set_inheritable(fds[0].fileno(), False)
    return fds[0]


def watchdog_interval() -> float | None:
    """The seconds between two WATCHDOG=1 messages; None if the service manager has no watchdog.

    It is half of the time after which the service manager ends the program (sd_watchdog_enabled(3)).
    """
    limit = os.environ.get("WATCHDOG_USEC", "")
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(limit) / 2_000_000 if limit.isdecimal() and int(limit) else None


class Notifier:
    """Sends messages to the service manager, if there is one: "READY=1", "STATUS=...", "WATCHDOG=1".

    The socket is made before the sandbox, which allows no new ones. A thread waits for a busy manager.
    libsystemd is not used for this: it would hold Python's lock while it waits, and stop all threads.
    """

    def __init__(self) -> None:
        self._address = os.environ.get("NOTIFY_SOCKET", "")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) if self._address else None
        self._threads = Threads(name="sd_notify")

    def tell(self, state: str) -> None:
        """Sends a message in a thread, in the order of the calls."""
        if self._socket is not None and self._threads.under_way < MOST_UNHEARD:
            self._threads.do(partial(self._send, state), lambda _: None)

    def tell_now(self, state: str) -> None:
        """Sends a message before the event loop runs. Never waits, since signals are blocked then."""
        self._send(state, socket.MSG_DONTWAIT)

    def _send(self, state: str, flags: int = 0) -> None:
        if self._socket is None:
            return
        address = self._address
        if address.startswith("@"):  # an abstract address
            address = f"\0{address[1:]}"
        try:
            self._socket.sendto(state.encode(), flags, address)
        except OSError as error:
            log.warning("the service manager could not be told %r: %s", state, error)

    async def end(self, state: str) -> None:
        """Sends the last message."""
        if self._socket is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._threads.run(partial(self._send, state)), PATIENCE)
        self._threads.close()

    def close(self) -> None:
        """Closes the socket; idempotent."""
        if self._socket is not None:
            self._socket.close()
