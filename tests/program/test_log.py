import fcntl
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.programs import (
    PATIENCE,
    Program,
    connect,
    executable,
    get_features,
    is_refused,
    listens_at,
)
from vhostd.program.log import BURST, LEVELS, REFILL, REPORTS, FloodGuard, set_up, write_line
from vhostd.program.log import PATIENCE as LINE_PATIENCE


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands at its only element."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def _own_handlers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lets the test set up the root logger without losing pytest's handlers."""
    level = logging.root.level
    monkeypatch.setattr(logging.root, "handlers", [])
    yield
    logging.root.setLevel(level)


def record(line: int = 1, level: int = logging.WARNING, *, fault: bool = False) -> logging.LogRecord:
    error = ValueError("a fault")
    exc_info = (ValueError, error, None) if fault else None
    return logging.LogRecord("vhostd", level, "place.py", line, "vring %d", (7,), exc_info)


def heard(guard: FloodGuard, times: int, line: int = 1, level: int = logging.WARNING) -> int:
    """How many of so many records of one place get through."""
    return sum(guard.filter(record(line, level)) is True for _ in range(times))


def test_a_place_is_heard_in_a_burst_and_then_no_more(clock: list[float]) -> None:
    assert heard(FloodGuard(), 10 * BURST) == BURST
    assert clock == [1000.0]


def test_a_place_is_heard_again_after_a_while(clock: list[float]) -> None:
    guard = FloodGuard()
    heard(guard, 2 * BURST)
    clock[0] += REFILL - 0.1
    assert heard(guard, 5) == 0
    clock[0] += 0.1
    assert heard(guard, 5) == 1
    clock[0] += 1000 * BURST * REFILL
    assert heard(guard, 2 * BURST) == BURST


@pytest.mark.usefixtures("clock")
def test_places_do_not_silence_each_other() -> None:
    guard = FloodGuard()
    assert heard(guard, 2 * BURST, line=1) == BURST
    assert heard(guard, 2 * BURST, line=2) == BURST


@pytest.mark.usefixtures("clock")
def test_reports_always_pass() -> None:
    guard = FloodGuard()
    asked_for = logging.LogRecord(REPORTS, logging.INFO, "place.py", 1, "asked for", None, None)
    assert all(guard.filter(asked_for) for _ in range(10 * BURST))


@pytest.mark.usefixtures("_own_handlers")
def test_reports_are_heard_at_any_level(capfd: pytest.CaptureFixture[str]) -> None:
    set_up("vhost-user-x", "error")
    logging.getLogger(REPORTS).info("what was asked for")
    assert capfd.readouterr().err == "vhost-user-x: INFO: what was asked for\n"


@pytest.mark.usefixtures("clock")
def test_debug_lines_and_tracebacks_always_pass() -> None:
    guard = FloodGuard()
    assert heard(guard, 10 * BURST, level=logging.DEBUG) == 10 * BURST
    assert all(guard.filter(record(fault=True)) for _ in range(10 * BURST))


def test_the_first_line_after_a_silence_tells_how_many_are_missing(clock: list[float]) -> None:
    guard = FloodGuard()
    heard(guard, BURST + 3)
    clock[0] += 2 * REFILL
    first, second = record(), record()
    assert guard.filter(first)
    assert first.getMessage() == "vring 7 (and 3 lines like this before it)"
    assert guard.filter(second)
    assert second.getMessage() == "vring 7"


@pytest.mark.usefixtures("_own_handlers")
def test_lines_bear_the_program_s_name_and_pass_the_guard(capfd: pytest.CaptureFixture[str]) -> None:
    set_up("vhost-user-rng", "info")
    logger = logging.getLogger("vhostd.vhost_user.session")
    logger.debug("not to be seen")
    logger.error("vring %d is broken", 3)
    for _ in range(2 * BURST):
        logger.info("again")
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == "vhost-user-rng: ERROR: vring 3 is broken"
    assert lines[1:] == ["vhost-user-rng: INFO: again"] * BURST


@pytest.mark.usefixtures("_own_handlers")
@pytest.mark.parametrize("level", LEVELS)
def test_each_level_hears_itself_and_what_is_worse(level: str, capfd: pytest.CaptureFixture[str]) -> None:
    set_up("p", level)
    for each in LEVELS:
        logging.getLogger().log(logging.getLevelNamesMapping()[each.upper()], "said")
    said = [line.split(":")[1].strip().lower() for line in capfd.readouterr().err.splitlines()]
    assert said == list(LEVELS[LEVELS.index(level) :])


def test_a_line_that_is_no_unicode_is_still_written(capfd: pytest.CaptureFixture[str]) -> None:
    write_line("/tmp/\udcff")
    assert capfd.readouterr().err == "/tmp/\\udcff\n"


def test_a_line_without_a_reader_is_lost_in_silence() -> None:
    kept = os.dup(2)
    read, write = os.pipe()
    os.close(read)
    try:
        os.dup2(write, 2)
        write_line("nobody listens")  # EPIPE
        os.close(2)
        write_line("there is no stderr")  # EBADF
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(write)


def test_a_reader_who_has_stopped_reading_keeps_nobody_waiting() -> None:
    """What a pipe still has room for is written, whatever the length of the line."""
    kept = os.dup(2)
    read, write = os.pipe()
    size = fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 2 * select.PIPE_BUF)
    try:
        os.dup2(write, 2)
        assert not write_line("x" * 3 * select.PIPE_BUF)
        assert not write_line("nobody reads")
        os.set_blocking(read, False)
        assert os.read(read, 2 * size) == b"x" * size
    finally:
        os.dup2(kept, 2)
        for fd in (kept, read, write):
            os.close(fd)


@pytest.mark.usefixtures("_own_handlers")
def test_of_many_lines_that_nobody_reads_one_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[int] = []

    def write(_line: str, _fd: int, patience: int) -> bool:
        waits.append(patience)
        return len(waits) in (1, 6)

    set_up("p", "info")
    monkeypatch.setattr("vhostd.program.log.write_line", write)
    for _ in range(8):
        logging.getLogger(REPORTS).info("a line")
    assert waits == [LINE_PATIENCE, LINE_PATIENCE, 0, 0, 0, 0, LINE_PATIENCE, 0]


def _fill(terminal: int, most: int = 1 << 20) -> int:
    """Writes up to so many bytes to a terminal that nobody reads; how many it took."""
    writer = os.open(os.ttyname(terminal), os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    done = 0
    try:
        while done < most:
            done += os.write(writer, b"x" * min(most - done, 64))
    except BlockingIOError:
        pass
    finally:
        os.close(writer)
    return done


def test_a_terminal_with_room_for_a_part_of_a_line_keeps_nobody_waiting() -> None:
    """As when somebody's ssh hangs: poll(2) says that it can be written to, and write(2) waits."""
    with ExitStack() as stack:
        terminals = []
        for _ in range(2):
            for fd in (ends := os.openpty()):
                stack.callback(os.close, fd)
            terminals.append(ends[1])
        _fill(terminals[1], _fill(terminals[0]) - 300)
        program = (
            "import logging, vhostd.program.log as log; log.set_up('x', None); logging.error('y' * 1000)"
        )
        subprocess.run([sys.executable, "-c", program], stderr=terminals[1], check=True, timeout=PATIENCE)


@pytest.mark.parametrize("level", [None, "warning"])
def test_a_person_at_a_terminal_is_told_what_journals_need_not_have(level: str | None) -> None:
    code = f"import vhostd.program.log as log; log.set_up('x', {level!r}); log.tell_person('x', 'listening')"
    with ExitStack() as stack:
        ours, theirs = os.openpty()
        for fd in (ours, theirs):
            stack.callback(os.close, fd)
        subprocess.run([sys.executable, "-c", code], stderr=theirs, check=True)
        os.write(theirs, b"end\n")
        heard = b""
        while b"end" not in heard:
            heard += os.read(ours, 100)
    assert heard == (b"end\r\n" if level else b"x: listening\r\nend\r\n")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stderr == b""


# --- Where stderr is /dev/null --------------------------------------------------------------------------

RNG = executable("vhost-user-rng")
DAEMON = 3 << 3  # the facility; the severity is added
# Runs a program with a /dev of its own: in folder $1, with $2 as its log.
WITH_SYSLOG = """
mount -t tmpfs none "$1"
touch "$1/null"
mount --bind /dev/null "$1/null"
ln -s "$2" "$1/log"
mount --rbind "$1" /dev
shift 2
exec "$@"
"""


class Syslog:
    """A system logger: what comes to /dev/log of the programs that are started here."""

    def __init__(self, folder: Path) -> None:
        self._dev = folder / "dev"
        self._dev.mkdir()
        self._path = folder / "log"
        self._listen()

    def command(self, command: Sequence[str]) -> list[str]:
        """The same program, which will find this logger."""
        shell = ["sh", "-euc", WITH_SYSLOG, "sh", str(self._dev), str(self._path)]
        return ["unshare", "--mount", *shell, *command]

    def next(self) -> tuple[int, str]:
        """The next message: its priority, and its text."""
        head, _, text = self._socket.recv(4096).decode().partition(">")
        return int(head[1:]), text

    def fill(self) -> None:
        """Has no room for another message, until it takes one."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, suppress(BlockingIOError):
            sender.setblocking(False)
            while True:
                sender.sendto(b"<14>noise: ", str(self._path))

    def restart(self) -> None:
        """Is another logger from now on, that knows nothing of what was sent to this one."""
        self._socket.close()
        self._path.unlink()
        self._listen()

    def close(self) -> None:
        self._socket.close()

    def _listen(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self._path))
        self._socket.settimeout(PATIENCE)


@pytest.fixture
def syslog(tmp_path: Path) -> Iterator[Syslog]:
    logger = Syslog(tmp_path)
    yield logger
    logger.close()


@pytest.mark.parametrize(("option", "status"), [("--rng-source=/nowhere", 1), ("--period=none", 2)])
def test_why_it_cannot_start_is_in_syslog(syslog: Syslog, tmp_path: Path, option: str, status: int) -> None:
    command = syslog.command([RNG, f"--socket-path={tmp_path / 'vhost.sock'}", option])
    with Program(command, stderr=subprocess.DEVNULL) as program:
        assert program.wait() == status
        priority, text = syslog.next()
    assert priority == DAEMON + 3
    assert text.startswith(f"vhost-user-rng[{program.pid}]: error: ")
    assert option.partition("=")[2] in text


@pytest.mark.parametrize("closed", [False, True])
def test_warnings_are_in_syslog_and_what_is_asked_for(
    syslog: Syslog, tmp_path: Path, *, closed: bool
) -> None:
    path = tmp_path / "vhost.sock"
    for options, expected in (
        ([], ["WARNING: refused a second front-end: one is being served"]),
        (
            ["--log-level=info"],
            ["INFO: a front-end has connected", "WARNING: refused a second front-end: one is being served"],
        ),
    ):
        shell = ["sh", "-c", 'exec "$@" 2>&-', "sh"] if closed else []
        command = [*shell, RNG, f"--socket-path={path}", *options]
        with Program(syslog.command(command), stderr=subprocess.DEVNULL) as program:
            program.until(lambda _: listens_at(path))
            with connect(path) as sock, connect(path) as second:
                assert get_features(sock)
                assert is_refused(second)
                for line in expected:
                    severity = 4 if line.startswith("WARNING") else 6
                    assert syslog.next() == (DAEMON + severity, f"vhost-user-rng[{program.pid}]: {line}")
            program.stop(signal.SIGTERM)


def test_a_logger_that_hangs_or_is_started_again_does_no_harm(syslog: Syslog, tmp_path: Path) -> None:
    path = tmp_path / "vhost.sock"
    command = syslog.command([RNG, f"--socket-path={path}", "--log-level=debug"])
    with Program(command, stderr=subprocess.DEVNULL) as program:
        program.until(lambda _: listens_at(path))
        syslog.fill()
        with connect(path) as sock:
            assert get_features(sock)
        syslog.restart()
        program.send(signal.SIGUSR2)
        while "connect" not in (text := syslog.next()[1]):
            pass
        assert "front-end" in text
        program.stop()


WITH_A_DEFECT = """
import sys
from vhostd import Device, DeviceType, run

class Broken(Device):
    \"\"\"a device\"\"\"

    kind = DeviceType.RNG
    queues = ()

    async def run(self):
        raise KeyError("not foreseen")

sys.argv[0] = "broken"
sys.exit(run(Broken))
"""


def test_what_was_not_foreseen_is_in_syslog(syslog: Syslog, tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITH_A_DEFECT, f"--socket-path={tmp_path / 'vhost.sock'}"]
    with Program(syslog.command(command), stderr=subprocess.DEVNULL) as program:
        heard = [syslog.next()]
        while "KeyError" not in heard[-1][1]:
            heard.append(syslog.next())
        assert program.wait() == 1
    assert heard[0] == (DAEMON + 3, f"broken[{program.pid}]: ERROR: the program ends:")
    assert "not foreseen" in heard[-1][1]
    assert all(priority == DAEMON + 3 for priority, _ in heard)


def test_why_it_cannot_go_on_is_in_syslog(syslog: Syslog, tmp_path: Path) -> None:
    """In the sandbox, where there are no further sockets to be had for it."""
    code = WITH_A_DEFECT.replace("KeyError", "SetupError").replace("DeviceType", "DeviceType, SetupError", 1)
    command = [sys.executable, "-c", code, f"--socket-path={tmp_path / 'vhost.sock'}"]
    with Program(syslog.command(command), stderr=subprocess.DEVNULL) as program:
        assert syslog.next() == (DAEMON + 3, f"broken[{program.pid}]: error: not foreseen")
        assert program.wait() == 1


def test_a_stderr_that_somebody_reads_keeps_syslog_out_of_it(syslog: Syslog, tmp_path: Path) -> None:
    options = [f"--socket-path={tmp_path / 'vhost.sock'}", "--rng-source=/nowhere"]
    with Program(syslog.command([RNG, *options])) as program:
        assert program.ends() == (
            1,
            ["vhost-user-rng: error: --rng-source=/nowhere: No such file or directory"],
        )
    with Program(syslog.command([RNG, "--period=none"]), stderr=subprocess.DEVNULL) as program:
        program.wait()
        assert "--period" in syslog.next()[1]  # is the first that comes
