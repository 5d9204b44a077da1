"""Without a node: a pipe in its place, with the state that the kernel would tell."""

import asyncio
import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import pytest

from tests.devices.vhost_user_input.fakes import SYN, Event, FakeSink, pack
from vhost_user_input import evdev_source
from vhost_user_input.description import AbsInfo, Description, Ids
from vhost_user_input.evdev_source import INPUT_EVENT, EvdevSource, describe, read_state
from vhost_user_input.state import State
from vhostd import SetupError

PRESS, RELEASE, DROPPED = (1, 30, 1), (1, 30, 0), (0, 3, 0)


class Axis(NamedTuple):
    value: int
    min: int
    max: int
    fuzz: int
    flat: int
    resolution: int


@dataclass
class FakeNode:
    """What evdev.InputDevice gives, for a keyboard that is also a touchpad."""

    fd: int = -1
    info: tuple[int, ...] = (3, -2, 0x123, 0x111)
    name: str = "a node"
    uniq: str = "01:02"
    grabbed: bool = False
    held: list[int] = field(default_factory=list)
    closed: bool = False
    values: dict[int, int] = field(default_factory=lambda: {0: 12, 0x2F: 1})

    def capabilities(self) -> dict[int, list[object]]:
        axes = [(code, self.absinfo(code)) for code in (0, 0x2F, 0x35, 0x39)]
        return {0: [0, 1, 3, 0x11, 0x14], 1: [30, 31], 3: list(axes), 0x11: [0, 1]}

    def input_props(self) -> list[int]:
        return [0, 2]

    def absinfo(self, axis_num: int) -> Axis:
        return Axis(self.values.get(axis_num, 0), 0, 1 if axis_num == 0x2F else 1000, 0, 0, 10)

    def grab(self) -> None:
        self.grabbed = True

    def close(self) -> None:
        self.closed = True


@dataclass
class Rig:
    node: FakeNode
    state: State
    kernel: int  # where the kernel's events are written; -1 once unplugged

    def send(self, *events: Event) -> None:
        os.write(self.kernel, b"".join(INPUT_EVENT.pack(5, 6, *event) for event in events))

    def unplug(self) -> None:
        if self.kernel >= 0:
            os.close(self.kernel)
            self.kernel = -1


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    reader, writer = os.pipe2(os.O_NONBLOCK)
    made = Rig(FakeNode(fd=reader), State(), writer)
    monkeypatch.setattr(evdev_source, "_open", lambda path: made.node)
    monkeypatch.setattr(evdev_source, "read_state", lambda node, description: made.state)
    monkeypatch.setattr(evdev_source, "held_keys", lambda node: made.node.held)
    yield made
    os.close(reader)
    made.unplug()


async def stop(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.wait([task])


def test_describes_the_node() -> None:
    description = describe(FakeNode())
    assert description == Description(
        name="a node",
        serial="01:02",
        ids=Ids(3, 0xFFFE, 0x123, 0x111),
        properties=frozenset((0, 2)),
        codes={
            0: frozenset((0, 3)),
            1: frozenset((30, 31)),
            3: frozenset((0, 0x2F, 0x35, 0x39)),
            0x11: frozenset((0, 1)),
            0x14: frozenset((0, 1)),
        },
        axes={
            0: AbsInfo(0, 1000, 0, 0, 10),
            0x2F: AbsInfo(0, 1, 0, 0, 10),
            0x35: AbsInfo(0, 1000, 0, 0, 10),
            0x39: AbsInfo(0, 1000, 0, 0, 10),
        },
    )
    assert description.slots == 2


def test_reads_the_state(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {
        0x80604518: bytes(3) + b"\x40" + bytes(92),  # EVIOCGKEY(96): key 30
        0x800C450A: b"".join(n.to_bytes(4, "little") for n in (0x35, 7, 8)),  # EVIOCGMTSLOTS(12)
    }

    def ioctl(fd: int, request: int, data: bytearray) -> None:
        assert fd == 77
        assert len(data) == len(answers[request])
        data[:] = answers[request] if data[0] != 0x39 else data[:4] + b"\xff" * 8

    monkeypatch.setattr("fcntl.ioctl", ioctl)
    node = FakeNode(fd=77)
    expected = State(slots=True)
    expected.apply(pack(PRESS, (3, 0, 12), (3, 0x35, 7), (3, 0x2F, 1), (3, 0x35, 8)))
    assert read_state(node, describe(node)) == expected


@pytest.mark.parametrize("grab", [True, False])
def test_grabs_unless_told_not_to(rig: Rig, grab: bool) -> None:  # noqa: FBT001
    source = EvdevSource("/dev/input/event7", grab=grab)
    assert rig.node.grabbed == grab
    source.close()
    assert rig.node.closed


def test_grabs_only_when_all_keys_are_up(rig: Rig) -> None:
    async def main() -> None:
        rig.node.held = [28]
        source = EvdevSource("node", grab=True)
        assert not rig.node.grabbed
        sink = FakeSink()
        task = asyncio.create_task(source.run(sink))
        for held, grabbed in (([28], False), ([], True)):
            rig.node.held = held
            rig.send(PRESS, SYN, RELEASE, SYN)
            await sink.until(events=len(sink.events) + 4)
            assert rig.node.grabbed == grabbed
        await stop(task)

    asyncio.run(main())


def test_a_node_that_another_program_has_grabbed(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def grab(self: FakeNode) -> None:
        raise OSError(errno.EBUSY, "busy")

    monkeypatch.setattr(FakeNode, "grab", grab)
    with pytest.raises(SetupError, match="/dev/input/event7: another program has grabbed it"):
        EvdevSource("/dev/input/event7", grab=True)
    assert rig.node.closed


def test_events_become_reports(rig: Rig) -> None:
    async def main() -> None:
        sink = FakeSink()
        task = asyncio.create_task(EvdevSource("node", grab=True).run(sink))
        await sink.until(states=1)
        rig.send((4, 4, 30), PRESS, (0x11, 0, 1))
        rig.send(SYN, (1, 30, 2), (0, 0, 1), RELEASE, SYN)
        assert await sink.until(events=5) == [(4, 4, 30), PRESS, SYN, RELEASE, SYN]
        await stop(task)

    asyncio.run(main())


def test_after_the_kernels_losses_the_state_is_read_anew(rig: Rig) -> None:
    async def main() -> None:
        sink = FakeSink()
        task = asyncio.create_task(EvdevSource("node", grab=True).run(sink))
        await sink.until(states=1)
        rig.state = State()
        rig.state.set(1, 31, 1)
        rig.send(PRESS, SYN, PRESS, DROPPED, (1, 31, 1), SYN, RELEASE, SYN)
        await sink.until(states=2)
        assert sink.events == [PRESS, SYN]
        assert sink.states[1] == rig.state
        rig.send((1, 31, 0), SYN)
        assert await sink.until(events=4) == [PRESS, SYN, (1, 31, 0), SYN]
        await stop(task)

    asyncio.run(main())


def test_losses_end_only_with_a_report(rig: Rig) -> None:
    source = EvdevSource("node", grab=True)
    sink = FakeSink()
    for events, states in (([DROPPED], 0), ([PRESS], 0), ([SYN, RELEASE], 0), ([SYN], 1)):
        source._take(b"".join(INPUT_EVENT.pack(0, 0, *event) for event in events), sink)
        assert (len(sink.states), sink.events) == (states, [])


def test_an_endless_report_counts_as_lost(rig: Rig) -> None:
    source = EvdevSource("node", grab=True)
    sink = FakeSink()
    for _ in range(3):
        source._take(INPUT_EVENT.pack(0, 0, 2, 0, 1) * 1000, sink)
    source._take(INPUT_EVENT.pack(0, 0, *SYN), sink)
    assert (len(sink.states), sink.events) == (1, [])


def test_the_end_of_the_node_ends_the_program(rig: Rig) -> None:
    async def main() -> None:
        sink = FakeSink()
        task = asyncio.create_task(EvdevSource("/dev/input/event7", grab=True).run(sink))
        await sink.until(states=1)
        rig.unplug()
        with pytest.raises(SetupError, match="/dev/input/event7: the input device is gone: end of file"):
            await task

    asyncio.run(main())


def test_enodev_ends_the_program(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(fd: int, size: int) -> bytes:
        raise OSError(errno.ENODEV, "No such device")

    async def main() -> None:
        sink = FakeSink()
        task = asyncio.create_task(EvdevSource("/dev/input/event7", grab=True).run(sink))
        await sink.until(states=1)
        monkeypatch.setattr("os.read", read)
        rig.send(SYN)
        with pytest.raises(SetupError, match="/dev/input/event7: the input device is gone: No such device"):
            await task

    asyncio.run(main())


def test_status_is_written_to_the_node(rig: Rig) -> None:
    source = EvdevSource("node", grab=True)
    reader, rig.node.fd = os.pipe()
    source.write(pack((0x11, 1, 1), SYN))
    assert os.read(reader, 100) == INPUT_EVENT.pack(0, 0, 0x11, 1, 1) + INPUT_EVENT.pack(0, 0, *SYN)
    os.close(reader)
    os.close(rig.node.fd)


def test_status_that_cannot_be_written_is_logged(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    EvdevSource("node", grab=True).write(pack((0x11, 1, 1), SYN))  # the read end of a pipe
    assert "node: the driver's status cannot be written: Bad file descriptor" in caplog.text


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/dev/input/none", "No such file or directory"),
        ("/dev/null", "not an evdev node"),
        ("/dev", "not an evdev node"),
        ("/etc/passwd", "not an evdev node"),
    ],
)
def test_what_is_not_an_evdev_node(path: str, reason: str) -> None:
    pytest.importorskip("evdev")
    with pytest.raises(SetupError, match=f"{path}: {reason}"):
        EvdevSource(path, grab=True)
