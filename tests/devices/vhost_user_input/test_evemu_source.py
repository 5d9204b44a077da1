import asyncio
import logging
import os
from pathlib import Path

import pytest

from tests.devices.vhost_user_input.fakes import SYN, FakeSink, pack
from vhost_user_input.evemu import parse
from vhost_user_input.evemu_source import EvemuSource
from vhost_user_input.state import State
from vhostd import SetupError

RECORDINGS = Path(__file__).parent / "recordings"
MOUSE = "N: m\nI: 3 1 2 3\nB: 02 03 00 00 00 00 00 00 00\nB: 05 01 00 00 00 00 00 00 00\n"


def source(folder: Path, text: str) -> EvemuSource:
    path = folder / "recording.evemu"
    path.write_text(text)
    return EvemuSource(str(path))


def played(source: EvemuSource) -> list[tuple[int, int, int]]:
    async def main() -> FakeSink:
        sink = FakeSink()
        await source.run(sink)
        return sink

    return asyncio.run(main()).events


@pytest.mark.parametrize("name", ["keyboard", "mouse", "tablet", "touchscreen"])
def test_plays_the_recordings(name: str) -> None:
    path = RECORDINGS / f"{name}.evemu"
    recording = parse(path.read_text(), path.name)
    made = EvemuSource(str(path))
    made._reports = [(0.0, report) for _, report in made._reports]
    assert played(made) == [event[1:] for event in recording.events]


def test_keeps_the_time_between_reports(tmp_path: Path) -> None:
    made = source(tmp_path, MOUSE + "E: 7.5 2 0 1\nE: 7.5 0 0 0\nE: 7.55 2 0 2\nE: 7.56 0 0 0\n")

    async def main() -> float:
        began = asyncio.get_running_loop().time()
        await made.run(FakeSink())
        return asyncio.get_running_loop().time() - began

    assert asyncio.run(main()) >= 0.06


def test_waits_for_the_guest_and_goes_on_after_it_has_paused(tmp_path: Path) -> None:
    made = source(tmp_path, MOUSE + "".join(f"E: 0.0 2 0 {n}\nE: 0.0 0 0 0\n" for n in (1, 2)))

    async def main() -> None:
        sink = FakeSink(is_open=False)
        task = asyncio.create_task(made.run(sink))
        await sink.until(waiting=1)
        assert sink.events == []
        sink.open()
        await task
        assert sink.events == [(2, 0, 1), SYN, (2, 0, 2), SYN]

    asyncio.run(main())


def test_begins_with_the_recorded_switches(tmp_path: Path) -> None:
    made = source(tmp_path, MOUSE + "S: 00 1\n")

    async def main() -> list[State]:
        sink = FakeSink()
        await made.run(sink)
        return sink.states

    expected = State()
    expected.set(5, 0, 1)
    assert asyncio.run(main()) == [expected]


def test_an_unfinished_report_is_not_played(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert played(source(tmp_path, MOUSE + "E: 0.0 2 0 1\nE: 0.0 0 0 0\nE: 0.1 2 0 1\n")) == [(2, 0, 1), SYN]
    assert "1 events have no SYN_REPORT" in caplog.text


def test_status_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    made = source(tmp_path, MOUSE)
    made.write(pack((0x11, 1, 1)))
    assert "E: 0.000000 0011 0001 0001" in caplog.text
    made.close()


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"none\.evemu: No such file"):
        EvemuSource(str(tmp_path / "none.evemu"))
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(SetupError, match=f"--evemu-path={path}: not a regular file"):
            EvemuSource(str(path))
    with pytest.raises(SetupError, match=r"recording\.evemu:5: code 0007"):
        source(tmp_path, MOUSE + "E: 0.0 2 7 1\n")
    with pytest.raises(SetupError, match=r"more than 1024 events, at 0\.000000 seconds"):
        source(tmp_path, MOUSE + 1024 * "E: 0.0 2 0 1\n")


def test_names_keep_their_bytes(tmp_path: Path) -> None:
    path = tmp_path / "latin1.evemu"
    path.write_bytes(b"N: T\xfcte\nI: 3 1 2 3\n")
    assert EvemuSource(str(path)).description.name.encode("utf-8", "surrogateescape") == b"T\xfcte"


def test_what_a_recording_leaves_pressed_is_released(tmp_path: Path) -> None:
    """One that was ended with Ctrl+C ends with these keys down."""
    keys = "N: k\nI: 3 1 2 3\nB: 01 00 00 00 60 00 40 00 00\n"
    made = source(tmp_path, keys + "E: 0.0 1 1d 1\nE: 0.0 0 0 0\nE: 0.1 1 2e 1\nE: 0.1 0 0 0\n")
    made._reports = [(0.0, report) for _, report in made._reports]
    assert played(made)[-3:] == [(1, 29, 0), (1, 46, 0), SYN]


def test_events_in_files_of_their_own(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("device", "events")]
    for path, text in zip(paths, (MOUSE, "E: 9.0 2 0 1\nE: 9.0 0 0 0\n"), strict=True):
        path.write_text(text)
    assert played(EvemuSource(*map(str, paths))) == [(2, 0, 1), SYN]
    paths[1].write_text("E: 9.0 2 9 1\n")
    with pytest.raises(SetupError, match=f"{paths[1]}:1: code 0009"):
        EvemuSource(*map(str, paths))
