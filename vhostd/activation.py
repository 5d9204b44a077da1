"""The socket that systemd hands over (sd_listen_fds(3))."""

import os

from vhostd.errors import SetupError
from vhostd.fds import Fd


def activated_fd() -> Fd | None:
    """The one socket passed by systemd, listening or connected; None if this process was not activated.

    Removes what systemd put into the environment, so that children do not take it for theirs.
    """
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return None
    from systemd.daemon import listen_fds  # needed only here: nobody else pays for loading libsystemd

    fds = [Fd(number) for number in listen_fds(unset_environment=True)]
    os.environ.pop("LISTEN_PIDFDID", None)
    if len(fds) != 1:
        raise SetupError(f"systemd passed {len(fds)} sockets, not one")
    os.set_inheritable(fds[0].fileno(), False)
    return fds[0]


def notify(state: str) -> None:
    """Tells the service manager, if there is one (sd_notify(3)): "READY=1", "STATUS=...", "STOPPING=1"."""
    if "NOTIFY_SOCKET" in os.environ:
        from systemd.daemon import notify as sd_notify

        sd_notify(state)
