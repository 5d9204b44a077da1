"""What a service manager hands over, and is told: sd_listen_fds(3), sd_notify(3)."""

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
MOST_UNHEARD = 16  # lines that wait for a service manager that does not listen; further ones are lost
PATIENCE = 0.05  # seconds that the last one may take

log = logging.getLogger(__name__)


def activated_fd() -> Fd | None:
    """The one socket passed by systemd, listening or connected; None if this process was not activated.

    Removes what systemd put into the environment, so that children do not take it for theirs.
    """
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return None
    from systemd.daemon import listen_fds  # here: nobody else pays for loading libsystemd

    count = os.environ.get("LISTEN_FDS")
    try:
        fds = [Fd(number) for number in listen_fds(unset_environment=True)]
    except OSError as error:
        raise SetupError(f"LISTEN_FDS={count}: {error.strerror}") from None
    finally:
        for name in VARIABLES:  # systemd's library knows the process's environment, not Python's copy
            os.environ.pop(name, None)
    if len(fds) != 1:
        close_all(fds)
        raise SetupError(f"systemd passed {len(fds)} sockets, not one")
    os.set_inheritable(fds[0].fileno(), False)
    return fds[0]


def watchdog_interval() -> float | None:
    """Seconds from one sign of life to the next that the service manager is owed; None if it does not watch.

    That is half of the time after which it takes the program for dead (sd_watchdog_enabled(3)).
    """
    limit = os.environ.get("WATCHDOG_USEC", "")
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(limit) / 2_000_000 if limit.isdecimal() and int(limit) else None


class Notifier:
    """Tells the service manager, if there is one (sd_notify(3)): "READY=1", "STATUS=...", "WATCHDOG=1".

    The socket is made before the sandbox, in which there are none to be had. A manager that is busy is waited
    for; libsystemd would do that with Python's lock, and keep all threads.
    """

    def __init__(self) -> None:
        self._address = os.environ.get("NOTIFY_SOCKET", "")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) if self._address else None
        self._threads = Threads(name="sd_notify")

    def tell(self, state: str) -> None:
        """Tells it beside the event loop, in the order of the calls."""
        if self._socket is not None and self._threads.under_way < MOST_UNHEARD:
            self._threads.do(partial(self._send, state), lambda _: None)

    def tell_now(self, state: str) -> None:
        """Tells it before there is an event loop, unless its socket is full: signals are not heard yet."""
        self._send(state, socket.MSG_DONTWAIT)

    def _send(self, state: str, flags: int = 0) -> None:
        if self._socket is None:
            return
        address = self._address
        if address.startswith("@"):  # an abstract one
            address = f"\0{address[1:]}"
        try:
            self._socket.sendto(state.encode(), flags, address)
        except OSError as error:
            log.warning("the service manager could not be told %r: %s", state, error)

    async def end(self, state: str) -> None:
        """Tells a last thing."""
        if self._socket is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._threads.run(partial(self._send, state)), PATIENCE)
        self._threads.close()

    def close(self) -> None:
        """Lets go of the socket; idempotent."""
        if self._socket is not None:
            self._socket.close()
