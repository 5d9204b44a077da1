"""Without a node: a pipe in its place, with the state that the kernel would tell."""

import asyncio
import errno
import logging
import os
import select
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from tests.devices.vhost_user_input.fake_node import FakeNode
from tests.devices.vhost_user_input.fakes import SYN, Event, FakeSink, pack
from vhost_user_input import evdev_source, grab
from vhost_user_input.evdev_node import INPUT_EVENT
from vhost_user_input.evdev_source import EvdevSource
from vhost_user_input.state import State
from vhostd import Grants, SetupError

PRESS, RELEASE, DROPPED = (1, 30, 1), (1, 30, 0), (0, 3, 0)


@dataclass
class Rig:
    node: FakeNode
    state: State
    kernel: int  # where the kernel's events are written; -1 once unplugged
    lit: list[bytes] = field(default_factory=list)  # what was written to it
    host_lit: list[int] = field(default_factory=list)  # the LEDs that the host has on
    absent: list[int] = field(default_factory=list)  # errors of the next attempts to open it

    def open(self, _path: str) -> FakeNode:
        if self.absent:
            raise OSError(self.absent.pop(0), "absent")
        return self.node

    def send(self, *events: Event) -> None:
        os.write(self.kernel, b"".join(INPUT_EVENT.pack(5, 6, *event) for event in events))

    async def read(self) -> None:
        """Returns when all that was sent has been read."""
        while select.select([self.node.fd], [], [], 0)[0]:
            await asyncio.sleep(0)

    def plug(self) -> None:
        os.close(self.node.fd)
        reader, self.kernel = os.pipe2(os.O_NONBLOCK)
        self.node = FakeNode(fd=reader)

    def unplug(self) -> None:
        if self.kernel >= 0:
            os.close(self.kernel)
            self.kernel = -1


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    reader, writer = os.pipe2(os.O_NONBLOCK)
    made = Rig(FakeNode(fd=reader), State(), writer)
    monkeypatch.setattr(evdev_source, "open_node", made.open)
    monkeypatch.setattr(evdev_source, "open_same", lambda path, description: made.open(path))
    monkeypatch.setattr(evdev_source, "read_state", lambda node, description: made.state.released(()))
    monkeypatch.setattr(evdev_source, "write_events", lambda node, events: made.lit.append(events))
    monkeypatch.setattr(evdev_source, "lit_leds", lambda node: list(made.host_lit))
    for module in (evdev_source, grab):
        monkeypatch.setattr(module, "held_keys", lambda node: list(made.node.held))
    monkeypatch.setattr(evdev_source, "LOOK_INTERVAL", 0.001)
    yield made
    os.close(made.node.fd)
    made.unplug()


@asynccontextmanager
async def running(sink: FakeSink, *, grab: bool = True, **options: bool) -> AsyncIterator[EvdevSource]:
    source = EvdevSource("/dev/input/event7", grab=grab, **options)
    task = asyncio.create_task(source.run(sink))
    await asyncio.sleep(0)
    try:
        yield source
    finally:
        task.cancel()
        await asyncio.wait([task])
        source.close()


@pytest.mark.parametrize("alone", [True, False])
def test_the_guest_has_it_while_its_driver_listens(rig: Rig, alone: bool) -> None:  # noqa: FBT001
    async def main() -> None:
        sink = FakeSink(is_open=False)
        async with running(sink, grab=alone):
            for _ in range(2):
                assert not rig.node.grabbed
                sink.open()
                assert rig.node.grabbed == alone
                sink.shut()
        assert not rig.node.grabbed
        assert rig.node.closed

    asyncio.run(main())


def test_it_is_given_back_at_the_end_of_the_program(rig: Rig) -> None:
    async def main() -> None:
        sink = FakeSink()
        async with running(sink):
            assert rig.node.grabbed
            rig.send(PRESS, SYN)
            await sink.until(events=2)
        assert not rig.node.grabbed
        assert sink.events == [PRESS, SYN, RELEASE, SYN]

    asyncio.run(main())


@pytest.mark.parametrize("alone", [True, False])
def test_what_was_typed_before_is_the_hosts(rig: Rig, alone: bool) -> None:  # noqa: FBT001
    async def main() -> None:
        sink = FakeSink(is_open=False)
        rig.state.set(3, 0, 12)
        async with running(sink, grab=alone):
            rig.send(PRESS, SYN, RELEASE, SYN)  # some of it not even read yet
            sink.open()
            rig.send((1, 31, 1), SYN)
            assert await sink.until(events=4) == [(3, 0, 12), SYN, (1, 31, 1), SYN]
            assert sink.forgotten == []

    asyncio.run(main())


@pytest.mark.parametrize("alone", [True, False])
def test_it_is_taken_only_when_all_keys_are_up(rig: Rig, alone: bool) -> None:  # noqa: FBT001
    """The host sees the end of a stroke that it saw begin, and the guest nothing of it."""

    async def main() -> None:
        sink = FakeSink()
        rig.node.held = [28]
        async with running(sink, grab=alone):
            for held, events in (([28, 30], [PRESS, SYN]), ([30], [(1, 28, 0), SYN]), ([], [RELEASE, SYN])):
                assert rig.node.grabs == 0
                rig.node.held = held
                rig.send(*events)
                await rig.read()
            assert rig.node.grabbed == alone
            rig.send((1, 31, 1), SYN)
            assert await sink.until(events=2) == [(1, 31, 1), SYN]

    asyncio.run(main())


def test_a_node_that_another_program_has_grabbed(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """The guest gets it when that program has given it back."""

    async def main() -> None:
        sink = FakeSink()
        rig.node.taken = True
        async with running(sink):
            assert not rig.node.grabbed
            rig.node.taken = False
            while not rig.node.grabbed:
                await asyncio.sleep(0.001)
            assert sink.events == []

    caplog.set_level(logging.INFO)
    asyncio.run(main())
    assert "/dev/input/event7: the guest gets it later: another program has grabbed it" in caplog.text


def test_a_guest_that_pauses_believes_what_it_believed_until_it_goes_on(rig: Rig) -> None:
    """The key's release is the host's then; the guest is told when it listens again."""

    async def main() -> None:
        sink = FakeSink()
        async with running(sink):
            rig.send(PRESS, SYN)
            await sink.until(events=2)
            sink.shut()
            assert not rig.node.grabbed
            assert sink.events == [PRESS, SYN]
            assert sink.forgotten == [RELEASE, SYN]

    asyncio.run(main())


CHORD = ((1, 29, 1), SYN, (1, 97, 1), SYN, (1, 29, 0), SYN, (1, 97, 0), SYN)


def test_the_chord_gives_it_to_the_host_and_back(rig: Rig) -> None:
    async def main() -> None:
        sink = FakeSink()
        async with running(sink, toggle=True):
            rig.send(*CHORD[:-2])
            await sink.until(events=6)
            assert rig.node.grabbed
            rig.send(*CHORD[-2:], (1, 31, 1), SYN)
            assert await sink.until(events=8) == list(CHORD)
            assert not rig.node.grabbed
            rig.send((1, 31, 0), SYN)
            rig.send(*CHORD)
            await rig.read()
            assert rig.node.grabbed
            rig.send(PRESS, SYN)
            assert (await sink.until(events=10))[8:] == [PRESS, SYN]

    asyncio.run(main())


def test_what_was_lent_stays_the_hosts_when_the_guest_restarts(rig: Rig) -> None:
    """But not for another virtual machine."""

    async def main() -> None:
        sink = FakeSink()
        async with running(sink, toggle=True) as source:
            rig.send(*CHORD)
            await rig.read()
            sink.shut()
            sink.open()
            assert not rig.node.grabbed
            sink.shut()
            source.greet()
            sink.open()
            assert rig.node.grabbed

    asyncio.run(main())


def test_without_a_guest_the_chord_is_none(rig: Rig) -> None:
    async def main() -> None:
        sink = FakeSink(is_open=False)
        async with running(sink, toggle=True):
            rig.send(*CHORD)
            await rig.read()
            sink.open()
            assert rig.node.grabbed

    asyncio.run(main())


def test_without_the_option_control_keys_are_keys(rig: Rig) -> None:
    async def main() -> None:
        sink = FakeSink()
        async with running(sink):
            rig.send(*CHORD)
            await sink.until(events=8)
            assert rig.node.grabbed

    asyncio.run(main())


def test_events_become_reports(rig: Rig) -> None:
    async def main() -> None:
        sink = FakeSink()
        async with running(sink):
            rig.send((4, 4, 30), PRESS, (0x11, 0, 1))
            rig.send(SYN, (1, 30, 2), (0, 0, 1), RELEASE, SYN)
            assert await sink.until(events=5) == [(4, 4, 30), PRESS, SYN, RELEASE, SYN]

    asyncio.run(main())


def test_after_the_kernels_losses_the_state_is_read_anew(rig: Rig) -> None:
    async def main() -> None:
        sink = FakeSink()
        async with running(sink):
            rig.state = State()
            rig.state.set(1, 31, 1)
            rig.send(PRESS, SYN, PRESS, DROPPED, (1, 31, 1), SYN, RELEASE, SYN)
            await sink.until(states=1)
            assert sink.events == [PRESS, SYN]
            assert sink.states == [rig.state]
            rig.send((1, 31, 0), SYN)
            assert await sink.until(events=4) == [PRESS, SYN, (1, 31, 0), SYN]

    asyncio.run(main())


def test_losses_end_only_with_a_report(rig: Rig) -> None:
    async def main() -> None:
        sink = FakeSink()
        async with running(sink):
            for events, states in (([DROPPED], 0), ([PRESS], 0), ([SYN, RELEASE], 0), ([SYN], 1)):
                rig.send(*events)
                await rig.read()
                assert (len(sink.states), sink.events) == (states, [])

    asyncio.run(main())


def test_an_endless_report_counts_as_lost(rig: Rig) -> None:
    async def main() -> None:
        sink = FakeSink()
        async with running(sink):
            for _ in range(3):
                rig.send(*[(2, 0, 1)] * 1000)
                await rig.read()
            rig.send(SYN)
            await rig.read()
            assert (len(sink.states), sink.events) == (1, [])

    asyncio.run(main())


def test_a_chord_is_followed_over_the_kernels_losses(rig: Rig) -> None:
    async def main() -> None:
        sink = FakeSink()
        async with running(sink, toggle=True):
            rig.node.held = [29]
            rig.send(DROPPED, SYN)
            await rig.read()
            rig.send(*CHORD[2:])
            await rig.read()
            assert not rig.node.grabbed

    asyncio.run(main())


def test_the_end_of_the_node_ends_the_program(rig: Rig) -> None:
    """What it held is released before."""

    async def main() -> None:
        sink = FakeSink()
        task = asyncio.create_task(EvdevSource("/dev/input/event7", grab=True).run(sink))
        await asyncio.sleep(0)
        rig.send(PRESS, SYN)
        await sink.until(events=2)
        rig.unplug()
        with pytest.raises(SetupError, match="/dev/input/event7: the input device is gone: end of file"):
            await task
        assert sink.events == [PRESS, SYN, RELEASE, SYN]

    asyncio.run(main())


def test_enodev_ends_the_program(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(fd: int, size: int) -> bytes:
        raise OSError(errno.ENODEV, "No such device")

    async def main() -> None:
        task = asyncio.create_task(EvdevSource("/dev/input/event7", grab=True).run(FakeSink()))
        await asyncio.sleep(0)
        monkeypatch.setattr("os.read", read)
        rig.send(SYN)
        with pytest.raises(SetupError, match="/dev/input/event7: the input device is gone: No such device"):
            await task

    asyncio.run(main())


def test_a_node_that_goes_just_when_the_guest_comes(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def grab(self: FakeNode) -> None:
        raise OSError(errno.ENODEV, "No such device")

    async def main() -> None:
        sink = FakeSink(is_open=False)
        task = asyncio.create_task(EvdevSource("/dev/input/event7", grab=True).run(sink))
        await asyncio.sleep(0)
        monkeypatch.setattr(FakeNode, "grab", grab)
        sink.open()
        with pytest.raises(SetupError, match="the input device is gone: No such device"):
            await task

    asyncio.run(main())


def test_a_device_that_is_unplugged_is_waited_for(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """The guest keeps its own, on which nothing stays pressed, and LEDs are as its driver set them."""

    async def main() -> None:
        sink = FakeSink()
        async with running(sink, wait=True) as source:
            rig.send(PRESS, SYN)
            await sink.until(events=2)
            rig.absent = [errno.ENOENT, errno.EACCES]
            gone = rig.node
            rig.unplug()
            assert await sink.until(events=4) == [PRESS, SYN, RELEASE, SYN]
            source.write(pack((0x11, 1, 1), SYN))
            rig.plug()
            while not rig.node.grabbed:
                await asyncio.sleep(0.001)
            assert gone.closed
            assert rig.lit[-1] == pack((0x11, 1, 1), SYN)
            rig.send(PRESS, SYN)
            await sink.until(events=6)

    caplog.set_level(logging.INFO)
    asyncio.run(main())
    assert "/dev/input/event7: the input device is gone, and waited for: end of file" in caplog.text
    assert "/dev/input/event7: the input device is back" in caplog.text


def test_a_device_is_waited_for_while_no_guest_listens(rig: Rig) -> None:
    async def main() -> None:
        sink = FakeSink(is_open=False)
        async with running(sink, wait=True):
            rig.absent = [errno.ENOENT]
            rig.unplug()
            while rig.absent:
                await asyncio.sleep(0.001)
            assert not rig.node.grabbed

    asyncio.run(main())


def test_the_start_waits_for_a_device_too(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.absent = [errno.ENOENT, errno.ENODEV]
    EvdevSource("node", grab=True, wait=True).close()
    assert not rig.absent
    for error, wait in ((errno.EACCES, True), (errno.ENOENT, False)):
        rig.absent = [error]
        with pytest.raises(SetupError, match="node: absent"):
            EvdevSource("node", grab=True, wait=wait)
    rig.absent = [errno.ENOENT]
    monkeypatch.setattr("signal.sigtimedwait", lambda *_: SimpleNamespace(si_signo=signal.SIGTERM))
    with pytest.raises(SystemExit) as end:
        EvdevSource("node", grab=True, wait=True)
    assert end.value.code == 0


# Linux, include/uapi/linux/input.h, as numbers of x86 and ARM
EVIOCGRAB, EVIOCGKEY_96, EVIOCGNAME_64, EVIOCGBIT_EV_ABS_8 = (
    0x4004_4590,
    0x8060_4518,
    0x8040_4506,
    0x8008_4523,
)
EVIOCSABS_0, EVIOCSKEYCODE, EVIOCREVOKE = 0x4018_45C0, 0x4008_4504, 0x4004_4591


def is_granted(grants: Grants, number: int) -> bool:
    return any(each.number & each.mask == number & each.mask for each in grants.ioctls)


def test_nodes_may_be_opened_later_only_if_one_is_waited_for(rig: Rig) -> None:
    for wait, folders in ((False, ()), (True, ("/dev/input",))):
        source = EvdevSource("node", grab=True, wait=wait)
        granted = source.grants()
        assert granted.devices == folders
        assert (granted == Grants(ioctls=granted.ioctls)) != wait
        for number in (EVIOCGRAB, EVIOCGKEY_96):
            assert is_granted(granted, number)
        for number in (EVIOCGNAME_64, EVIOCGBIT_EV_ABS_8):
            assert is_granted(granted, number) == wait
        for number in (EVIOCSABS_0, EVIOCSKEYCODE, EVIOCREVOKE):
            assert not is_granted(granted, number)
        source.close()


def test_status_goes_to_the_node_while_the_guest_has_it(rig: Rig) -> None:
    """LEDs that were set before are set then."""

    async def main() -> None:
        sink = FakeSink(is_open=False)
        async with running(sink) as source:
            source.write(pack((0x11, 1, 1), (0x12, 1, 1), SYN))
            assert rig.lit == []
            sink.open()
            assert rig.lit == [pack((0x11, 1, 1), SYN)]
            source.write(pack((0x11, 1, 0), (0x12, 1, 1), SYN))
            assert rig.lit[1:] == [pack((0x11, 1, 0), (0x12, 1, 1), SYN)]

    asyncio.run(main())


@pytest.mark.parametrize("alone", [True, False])
def test_the_host_gets_its_leds_back(rig: Rig, alone: bool) -> None:  # noqa: FBT001
    async def main() -> None:
        sink = FakeSink()
        rig.host_lit = [1]
        async with running(sink, grab=alone) as source:
            source.write(pack((0x11, 0, 1), (0x11, 1, 0), SYN))
            sink.shut()
            assert rig.lit[1:] == ([pack((0x11, 0, 0), (0x11, 1, 1), SYN)] if alone else [])

    asyncio.run(main())


def test_status_that_cannot_be_written_is_logged(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def write_events(node: FakeNode, events: bytes) -> None:
        raise OSError(errno.EBADF, "Bad file descriptor")

    async def main() -> None:
        async with running(FakeSink()) as source:
            monkeypatch.setattr(evdev_source, "write_events", write_events)
            source.write(pack((0x11, 1, 1), SYN))

    asyncio.run(main())
    assert "/dev/input/event7: the driver's status cannot be written: Bad file descriptor" in caplog.text


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
