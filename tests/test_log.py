import logging
import os
import time
from collections.abc import Iterator

import pytest

from vhostd.log import BURST, LEVELS, REFILL, FloodGuard, set_up, write_line


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
    logger = logging.getLogger("vhostd.session")
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
