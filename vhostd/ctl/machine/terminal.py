"""The terminal, which QEMU changes and may leave changed if it is killed."""

import os
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress

STDIN = 0


@contextmanager
def terminal_kept() -> Iterator[None]:
    """Gives the terminal on stdin its settings back in the end, if this process may change them then."""
    try:
        settings = termios.tcgetattr(STDIN)
        blocking = os.get_blocking(STDIN)
    except (termios.error, OSError):  # no terminal
        yield
        return
    try:
        yield
    finally:
        with suppress(termios.error, OSError):
            if os.tcgetpgrp(STDIN) == os.getpgrp():  # else a change would stop this process
                termios.tcsetattr(STDIN, termios.TCSADRAIN, settings)
                os.set_blocking(STDIN, blocking)
