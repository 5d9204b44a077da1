import argparse
import asyncio
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.devices.vhost_user_input.fakes import SYN, FakeChain, FakeEventq, FakeQueue, pack
from vhost_user_input import MANIFEST
from vhost_user_input.description import VIRTUAL, Description, keyboard
from vhost_user_input.device import Input
from vhost_user_input.evemu import parse
from vhost_user_input.source import Sink
from vhostd import DeviceType, Grants, Ioctl, RefusedRequest, SetupError, UsageError
from vhostd.virtio.link import Link

RECORDINGS = Path(__file__).parent / "recordings"


class FakeSource:
    def __init__(self, description: Description) -> None:
        self.description = description
        self.written: list[bytes] = []
        self.closed = False
        self.greeted = 0
        self.error: Exception | None = None
        self.needs = Grants()

    def greet(self) -> None:
        self.greeted += 1

    def grants(self) -> Grants:
        return self.needs

    async def run(self, sink: Sink) -> None:
        if self.error:
            raise self.error

    def write(self, events: bytes) -> None:
        self.written.append(events)

    def close(self) -> None:
        self.closed = True


def made(*options: str) -> Input:
    parser = argparse.ArgumentParser()
    Input.add_options(parser)
    return Input.from_options(parser.parse_args(options))


def name_of(device: Input) -> str:
    device.write_config(0, b"\x01\x00")
    space = device.read_config()
    return space[8 : 8 + space[2]].decode()


def test_what_it_is() -> None:
    assert Input.kind == DeviceType.INPUT
    assert MANIFEST.capabilities == ("evdev-path", "no-grab")
    assert len(Input(keyboard(), []).queues) == 2


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--no-grab"],
        ["--name=x"],
        ["--evdev-path=a", "--evemu-path=b"],
        ["-p", "a", "--event-socket=b"],
        ["--evemu-path=a", "-n"],
        ["--evdev-path=a", "--event-socket=b"],
        ["--evemu-path=a", "--no-grab"],
        ["--event-socket=a", "--no-grab"],
        ["--event-socket=a", "--grab-toggle"],
        ["--event-socket=a", "--wait"],
        ["--evdev-path=a", "--no-grab", "--grab-toggle"],
        ["--evdev-path=a", "--event-device=mouse"],
        ["--evdev-path=a", "--event-socket-mode=600"],
        ["--evemu-path=a", "--event-socket-group=0"],
        ["--event-socket=a", "--evemu-path=b", "--event-device=mouse"],
    ],
)
def test_options_that_do_not_go_together(options: list[str]) -> None:
    with pytest.raises(UsageError, match="--"):
        made(*options)


def test_a_recording() -> None:
    device = made(f"--evemu-path={RECORDINGS / 'tablet.evemu'}")
    assert name_of(device) == "Wacom Intuos Pro M Pen"
    device.close()


def test_a_socket_alone_is_a_keyboard(tmp_path: Path) -> None:
    path = tmp_path / "s"
    device = made(f"--event-socket={path}", "--serial=7")
    assert path.is_socket()
    assert device.places() == [f"events are taken at {path}"]
    assert name_of(device) == "vhostd virtual keyboard"
    device.write_config(0, b"\x02\x00")
    assert device.read_config()[2:9] == b"\x01\x00\x00\x00\x00\x007"
    device.close()
    assert not path.exists()


def test_a_socket_for_a_recorded_device(tmp_path: Path) -> None:
    recording = RECORDINGS / "mouse.evemu"
    device = made(f"--event-socket={tmp_path / 's'}", f"--evemu-path={recording}", "--name=foo")
    assert name_of(device) == "foo"
    device.write_config(0, b"\x11\x02")
    assert device.read_config()[2] == 2
    device.close()


@pytest.mark.parametrize("kind", VIRTUAL)
def test_the_device_of_a_socket_alone(tmp_path: Path, kind: str) -> None:
    device = made(f"--event-socket={tmp_path / 's'}", f"--event-device={kind}")
    assert name_of(device) == f"vhostd virtual {kind}"
    device.close()


def test_the_mode_and_the_group_of_the_event_socket(tmp_path: Path) -> None:
    path = tmp_path / "s"
    device = made(f"--event-socket={path}", "--event-socket-mode=0620", f"--event-socket-group={os.getgid()}")
    assert (path.stat().st_mode & 0o777, path.stat().st_gid) == (0o620, os.getgid())
    device.close()


def test_a_description_and_events_in_two_files(tmp_path: Path) -> None:
    events = tmp_path / "events"
    events.write_text("E: 0.0 2 0 1\nE: 0.0 0 0 0\n")
    device = made(f"--evemu-path={RECORDINGS / 'mouse.evemu'}", f"--evemu-path={events}")
    assert name_of(device) == "Logitech USB Optical Mouse"
    device.close()


def test_another_virtual_machine_is_told_of() -> None:
    source = FakeSource(keyboard())
    device = Input(keyboard(), [source])
    device.attach(Link())
    device.detach()
    assert source.greeted == 1


def test_sources_that_cannot_be_opened(tmp_path: Path) -> None:
    for option in ("--evdev-path", "--evemu-path"):
        with pytest.raises(SetupError, match="/none/there: No such file"):
            made(f"{option}=/none/there")
    with pytest.raises(SetupError, match="/none/there: No such file"):
        made("--event-socket=/none/there")


def test_config_and_reset() -> None:
    device = Input(keyboard(), [])
    device.write_config(0, b"\x01")
    assert device.read_config()[0] == 1
    with pytest.raises(RefusedRequest):
        device.write_config(2, b"\x01")
    device.reset()
    assert device.read_config() == bytes(136)


async def send_status(device: Input, *chains: FakeChain) -> FakeQueue:
    queue = FakeQueue()
    for chain in chains:
        queue.add(chain)
    task = asyncio.create_task(device.statusq(queue.virtqueue))
    while len(queue.pushed) < len(chains):
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    queue.stop()
    await task
    assert queue.pushed == list(chains)
    assert not any(chain.written for chain in queue.pushed)
    return queue


def test_status_goes_to_all_sources() -> None:
    source, other = FakeSource(keyboard()), FakeSource(keyboard())
    device = Input(keyboard(), [source, other])
    events = [(0x11, 1, 1), (0x14, 0, 250)]
    asyncio.run(send_status(device, *(FakeChain(pack(event)) for event in events)))
    assert source.written == other.written == [pack(*events, SYN)]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        pack((0x11, 0, 1))[:7],
        pack((0x11, 0, 1)) + b"\0",
        pack((0x11, 9, 1)),  # an LED that the device has not
        pack((0x12, 0, 1)),
        pack((4, 4, 30)),  # Linux echoes scan codes
        pack((1, 30, 1)),
        pack(SYN),
    ],
)
def test_status_that_is_ignored(data: bytes) -> None:
    source = FakeSource(keyboard())
    asyncio.run(send_status(Input(keyboard(), [source]), FakeChain(data)))
    assert source.written == []


def test_a_flood_of_status() -> None:
    source = FakeSource(keyboard())
    chains = [FakeChain(pack((0x11, 0, n % 2))) for n in range(200)]
    asyncio.run(send_status(Input(keyboard(), [source]), *chains))
    assert len(source.written) == 4


def test_a_source_that_is_gone_ends_the_program() -> None:
    source = FakeSource(keyboard())
    source.error = SetupError("gone")
    device = Input(keyboard(), [FakeSource(keyboard()), source])
    with pytest.raises(SetupError, match="gone"):
        asyncio.run(device.run())
    device.close()
    assert source.closed


def test_it_needs_what_its_sources_need() -> None:
    sources = [FakeSource(keyboard()), FakeSource(keyboard())]
    sources[0].needs, sources[1].needs = Grants(read=("/run",)), Grants(ioctls=(Ioctl(1),))
    assert Input(keyboard(), sources).grants() == Grants(read=("/run",), ioctls=(Ioctl(1),))


def test_a_recording_into_a_ring_of_four_entries(tmp_path: Path) -> None:
    path = RECORDINGS / "touchscreen.evemu"
    recording = parse(path.read_text(), path.name)
    fast = tmp_path / "fast.evemu"
    fast.write_text(re.sub(r"^E: \S+", "E: 0.0", path.read_text(), flags=re.MULTILINE))

    async def main() -> FakeEventq:
        device, queue = made(f"--evemu-path={fast}"), FakeEventq(size=4)
        lives = (device.run(), device.queues[0](queue.virtqueue))
        tasks = [asyncio.ensure_future(life) for life in lives]
        await queue.received(len(recording.events))
        queue.stop()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        return queue

    assert asyncio.run(main()).events == [event[1:] for event in recording.events]


# --- A state for another program ------------------------------------------------------------------------


def with_state(*events: tuple[int, int, int]) -> Input:
    """A keyboard of which the driver has asked for the name, and to which it has sent these."""
    device = Input(keyboard(), [])
    device.write_config(0, b"\x01\x00")
    asyncio.run(send_status(device, *(FakeChain(pack(event)) for event in events)))
    return device


def test_what_the_driver_has_set_and_selected_is_set_and_selected_elsewhere() -> None:
    source = with_state((0x11, 1, 1), (0x14, 0, 250), (0x11, 1, 0), (0x11, 2, 1))
    sources = [FakeSource(keyboard()), FakeSource(keyboard())]
    destination = Input(keyboard(), [*sources])
    destination.load(source.save(), 1)
    assert destination.read_config() == source.read_config()
    for each in sources:
        assert each.written == [pack((0x11, 1, 0), (0x14, 0, 250), (0x11, 2, 1), SYN)]
    assert destination.save() == source.save()


def test_a_reset_forgets_it() -> None:
    device = with_state((0x11, 1, 1))
    device.reset()
    assert device.save() == Input(keyboard(), []).save()


def test_a_driver_that_has_set_nothing() -> None:
    source = FakeSource(keyboard())
    Input(keyboard(), [source]).load(Input(keyboard(), []).save(), 1)
    assert source.written == []


def test_a_state_that_is_wrong_changes_nothing() -> None:
    state = with_state((0x11, 1, 1)).save()
    source = FakeSource(keyboard())
    device = Input(keyboard(), [source])
    before = device.save()
    not_set = [state[:6] + pack(event) + state[14:] for event in ((0x11, 3, 1), (1, 30, 1), (0, 0, 0))]
    for wrong in (*(state[:size] for size in range(len(state))), state + b"\0", *not_set):
        with pytest.raises(RefusedRequest):
            device.load(wrong, 1)
    assert device.save() == before
    assert source.written == []


@given(st.binary(max_size=64), st.dictionaries(st.integers(0, 80), st.integers(0, 255), max_size=6))
def test_any_bytes_are_refused_or_make_sense(end: bytes, bytes_at: dict[int, int]) -> None:
    state = bytearray(with_state((0x11, 1, 1)).save() + end)
    for at, byte in bytes_at.items():
        state[at % len(state)] = byte
    device = Input(VIRTUAL["touchscreen"](), [])
    before = device.save()
    try:
        device.load(bytes(state), 1)
    except RefusedRequest:
        assert device.save() == before
    else:
        again = Input(VIRTUAL["touchscreen"](), [])
        again.load(device.save(), 1)
