"""The process as a program wants it from its first moment."""

import os
import resource
import signal

from vhostd.errors import SetupError

LEAST_FDS = 32  # of which a program with all that there is has open, before any front-end comes, two thirds


def prepare() -> None:
    """Holds signals, and makes sure of fds; raises SetupError where there are too few."""
    _hold_signals()
    _occupy_standard_fds()
    _expect_fds()


def _hold_signals() -> None:
    """Lets signals wait until the event loop can take them, and again once it has ended.

    An exception raised by a signal's handler in the middle of a set-up, or of an import, would leave files
    behind, or be swallowed where Python ignores exceptions. Those that only ask for something, of which a
    device may know nothing, are ignored then: a guest, too, must not notice that a terminal has been closed.
    """
    # asyncio's Runner would put a handler of its own in place of Python's, for nothing.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    asking = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
    for number in asking:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, *asking))


def _expect_fds() -> None:
    """Raises SetupError where so few files may be open that an event loop cannot even be made."""
    if (most := resource.getrlimit(resource.RLIMIT_NOFILE)[0]) < LEAST_FDS:
        raise SetupError(f"RLIMIT_NOFILE is {most}: a program needs {LEAST_FDS} fds at least")


def _occupy_standard_fds() -> None:
    """Opens /dev/null in place of a closed stdin, stdout or stderr, where no socket must come to lie."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            try:
                os.open(os.devnull, os.O_RDWR)  # which gets the lowest number
            except OSError as error:
                raise SetupError(f"{os.devnull}: {error.strerror}, and fd {fd} is closed") from None
