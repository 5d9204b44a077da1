"""What a service manager hands over, and is told: sd_listen_fds(3), sd_notify(3)."""

import asyncio
import logging
import os
import socket
from contextlib import suppress
from functools import partial

from vhostd.errors import SetupError
from vhostd.fds import Fd, close_all
from vhostd.threads import Threads

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
    from systemd.daemon import listen_fds  # needed only here: nobody else pays for loading libsystemd

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


def notify(state: str) -> None:
    """Tells the service manager, if there is one (sd_notify(3)): "READY=1", "STATUS=...", "WATCHDOG=1".

    Waits for one whose socket is full; libsystemd's would do that with Python's lock, and keep all threads.
    """
    if address := os.environ.get("NOTIFY_SOCKET"):
        if address.startswith("@"):  # an abstract one
            address = f"\0{address[1:]}"
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.sendto(state.encode(), address)
        except OSError as error:
            log.warning("the service manager could not be told %r: %s", state, error)


class Notifier:
    """Tells the service manager beside the event loop: it may be busy, and then `notify` waits for it."""

    def __init__(self) -> None:
        self._threads = Threads(name="sd_notify")

    def tell(self, state: str) -> None:
        """As `notify`, in the order of the calls."""
        if os.environ.get("NOTIFY_SOCKET") and self._threads.under_way < MOST_UNHEARD:
            self._threads.do(partial(notify, state), lambda _: None)

    async def close(self, state: str) -> None:
        """Tells a last thing."""
        if os.environ.get("NOTIFY_SOCKET"):
            with suppress(TimeoutError):
                await asyncio.wait_for(self._threads.run(partial(notify, state)), PATIENCE)
        self._threads.close()
