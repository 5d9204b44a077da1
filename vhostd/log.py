"""Log lines on stderr, and a guard that keeps a guest from flooding them."""

import logging
import sys
import time

LEVELS = ("debug", "info", "warning", "error")
BURST = 20  # lines that one place in the source may write at once
REFILL = 5.0  # seconds until it may write one more


class FloodGuard(logging.Filter):
    """Limits how often each place in the source is heard, since most can be reached by a hostile guest.

    Errors with a traceback and debug lines, which somebody asked for, always pass.
    """

    def __init__(self) -> None:
        super().__init__()
        self._places: dict[tuple[str, int], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno <= logging.DEBUG or record.exc_info:
            return True
        place = (record.pathname, record.lineno)
        now = time.monotonic()
        # A token bucket kept as the time at which it will be full again.
        full_at, missed = self._places.get(place, (now, 0))
        full_at = max(full_at, now) + REFILL
        if full_at - now > BURST * REFILL:
            self._places[place] = (full_at - REFILL, missed + 1)
            return False
        if missed:
            record.msg = f"{record.msg} (and {missed} lines like this before it)"
        self._places[place] = (full_at, 0)
        return True


def set_up(program: str, level: str) -> None:
    """Sends log lines of `level` and above to stderr, one line each, after the program's name."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"{program}: %(levelname)s: %(message)s"))
    handler.addFilter(FloodGuard())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.raiseExceptions = False  # stderr may be gone, and that is no reason to end
