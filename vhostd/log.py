"""Log lines on stderr, and a guard that keeps a guest from flooding them."""

import contextlib
import logging
import os
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


class LineHandler(logging.Handler):
    """Writes each record to stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            write_line(self.format(record))
        except Exception:
            self.handleError(record)


def write_line(line: str) -> None:
    """Writes a line to stderr, in one piece; if nobody is there to read it, it is lost and nothing happens.

    sys.stderr would keep what it could not write, and fail with it again when the program exits.
    """
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode(errors="backslashreplace"))


def set_up(program: str, level: str) -> None:
    """Sends log lines of `level` and above to stderr, one line each, after the program's name."""
    handler = LineHandler()
    handler.setFormatter(logging.Formatter(f"{program}: %(levelname)s: %(message)s"))
    handler.addFilter(FloodGuard())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
