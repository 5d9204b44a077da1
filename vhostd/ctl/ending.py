"""The signals that ask for the end, as events of an event loop."""

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@contextmanager
def asked_to_end() -> Iterator["asyncio.Queue[signal.Signals]"]:
    """The signals that ask for the end, except those that whoever started us has us ignore."""
    loop = asyncio.get_running_loop()
    came: asyncio.Queue[signal.Signals] = asyncio.Queue()
    taken = [number for number in ENDING if signal.getsignal(number) != signal.SIG_IGN]
    for number in taken:
        loop.add_signal_handler(number, came.put_nowait, number)
    try:
        yield came
    finally:
        for number in taken:
            loop.remove_signal_handler(number)
