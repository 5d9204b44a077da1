"""Log lines on stderr, or in syslog if stderr is /dev/null, and a guard against floods of lines."""

import contextlib
import logging
import os
import select
import socket
import stat
import struct
import sys
import syslog
import time
from types import TracebackType

PRIORITIES = {
    logging.DEBUG: syslog.LOG_DEBUG,
    logging.INFO: syslog.LOG_INFO,
    logging.WARNING: syslog.LOG_WARNING,
    logging.ERROR: syslog.LOG_ERR,
}
STDERR = 2
SYSLOG = "/dev/log"
REPORTS = "vhostd.reports"  # the logger for reports that a signal asks for: they are written at any log level
LEVELS = ("debug", "info", "warning", "error")
BURST = 20  # lines that one place in the source may write at once
REFILL = 5.0  # seconds until it may write one more
PATIENCE = 10  # milliseconds that a slow reader may delay the guest for each line
TIMEVAL = struct.Struct("@ll")  # struct timeval: seconds, microseconds


class FloodGuard(logging.Filter):
    """Limits the lines of each place in the source, since a hostile guest can reach most of them.

    Errors with a traceback always pass. So do debug lines and reports, since a person has asked for them.
    """

    def __init__(self) -> None:
        super().__init__()
        self._places: dict[tuple[str, int], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno <= logging.DEBUG or record.exc_info or record.name == REPORTS:
            return True
        place = (record.pathname, record.lineno)
        now = time.monotonic()
        # A token bucket, stored as the time at which it will be full again.
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

    def __init__(self) -> None:
        super().__init__()
        self.is_terminal = os.isatty(STDERR)  # asked now: in the sandbox nobody can
        self._fd = _open_terminal() or STDERR
        self._is_read = True

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.write(self.format(record))
        except Exception:
            self.handleError(record)

    def write(self, line: str) -> None:
        """Writes a line. While nobody reads, only the first one waits."""
        patience = PATIENCE if self._is_read else 0
        self._is_read = write_line(line, self._fd, patience)

    def close(self) -> None:
        if self._fd != STDERR:
            os.close(self._fd)
            self._fd = STDERR
        super().close()


class Syslog:
    """The system logger. If it does not run, or has no room, a line is lost without an error.

    Unlike in syslog(3), the socket is not connected. So it finds a logger that was restarted, also in the
    sandbox. And a write does not wait for ever.
    """

    def __init__(self, program: str) -> None:
        self._tag = f"{program}[{os.getpid()}]"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, TIMEVAL.pack(0, PATIENCE * 1000))

    def write(self, severity: int, line: str) -> None:
        """Sends a line."""
        text = f"<{syslog.LOG_DAEMON | severity}>{self._tag}: {line}".replace("\0", "\\x00")
        with contextlib.suppress(OSError):
            self._socket.sendto(text.encode(errors="backslashreplace"), SYSLOG)


class SyslogHandler(logging.Handler):
    """Writes each record to syslog, a message per line."""

    def __init__(self, program: str) -> None:
        super().__init__()
        self.syslog = Syslog(program)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            for line in self.format(record).splitlines():
                self.syslog.write(PRIORITIES[record.levelno], line)
        except Exception:
            self.handleError(record)


def write_line(line: str, fd: int = STDERR, patience: int = PATIENCE) -> bool:
    """Writes a line to stderr; False if it is lost, since nobody read it within `patience` milliseconds.

    A line of up to PIPE_BUF bytes is written in one piece. sys.stderr is not used: it would keep a line that
    it could not write, and fail again when the program exits.
    """
    data = f"{line}\n".encode(errors="backslashreplace")
    writable = select.poll()
    writable.register(fd, select.POLLOUT)
    with contextlib.suppress(OSError):
        while data and writable.poll(patience):
            data = data[os.write(fd, data[: select.PIPE_BUF]) :]
    return not data


def complain(program: str, error: Exception) -> None:
    """Writes why the program ends, in one line, to stderr or syslog."""
    line = f"error: {' '.join(str(error).splitlines())}"
    if _stderr_is_null():
        _system_logger(program).write(syslog.LOG_ERR, line)
    else:
        write_line(f"{program}: {line}")


def tell_person(program: str, line: str) -> None:
    """Writes a line to a terminal on stderr, for the person who has started the program; else nothing."""
    root = logging.getLogger()
    for handler in root.handlers:
        if isinstance(handler, LineHandler) and handler.is_terminal and root.isEnabledFor(logging.INFO):
            handler.write(f"{program}: {line}")


def _system_logger(program: str) -> Syslog:
    """The logger in use, since the sandbox allows no new socket; a new one before logging is set up."""
    handlers = (handler for handler in logging.getLogger().handlers if isinstance(handler, SyslogHandler))
    return next((handler.syslog for handler in handlers), None) or Syslog(program)


def set_up(program: str, level: str | None) -> None:
    """Sends log lines of `level` and above to stderr, one line each, after the program's name.

    If stderr is /dev/null they go to syslog, and so does the traceback of an exception that ends the program.
    The default level is INFO; for syslog it is WARNING.
    """
    handler: logging.Handler
    if _stderr_is_null():
        handler, head, default = SyslogHandler(program), "", "warning"
        sys.excepthook = _tell
    else:
        handler, head, default = LineHandler(), f"{program}: ", "info"
    handler.setFormatter(logging.Formatter(f"{head}%(levelname)s: %(message)s"))
    handler.addFilter(FloodGuard())
    logging.basicConfig(level=(level or default).upper(), handlers=[handler], force=True)
    logging.getLogger(REPORTS).setLevel(logging.INFO)


def _tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    logging.error("the program ends:", exc_info=(kind, error, trace))


def _open_terminal() -> int | None:
    """A non-blocking fd for the terminal on stderr; None if stderr is not a terminal.

    poll(2) reports a terminal as writable if it has room for one byte; then write(2) waits for the rest of a
    line. stderr's own fd cannot be made non-blocking, since other programs share it.
    """
    flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        return os.open(os.ttyname(STDERR), flags)
    except OSError:  # not a terminal, or another user's
        return None


def _stderr_is_null() -> bool:
    """Whether stderr is /dev/null, as libvirt sets it."""
    try:
        status = os.fstat(STDERR)
    except OSError:  # stderr is closed
        return False
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == os.makedev(1, 3)
