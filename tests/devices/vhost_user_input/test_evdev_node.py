import errno
import os

import pytest

from tests.devices.vhost_user_input.fake_node import FakeNode
from tests.devices.vhost_user_input.fakes import SYN, pack
from vhost_user_input import evdev_node
from vhost_user_input.description import AbsInfo, Description, Ids
from vhost_user_input.evdev_node import (
    INPUT_EVENT,
    describe,
    drain,
    open_same,
    read_state,
    reason,
    write_events,
)
from vhost_user_input.state import State


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
    expected.apply(pack((1, 30, 1), (3, 0, 12), (3, 0x35, 7), (3, 0x2F, 1), (3, 0x35, 8)))
    assert read_state(node, describe(node)) == expected


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> FakeNode:
    node = FakeNode()
    monkeypatch.setattr(evdev_node, "open_node", lambda path: node)
    return node


def test_the_same_device_is_opened_again(opened: FakeNode) -> None:
    assert open_same("node", describe(FakeNode())) is opened
    assert not opened.closed


def test_another_device_is_not(opened: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    opened.name = "another"
    with pytest.raises(OSError, match="another device") as caught:
        open_same("node", describe(FakeNode()))
    assert opened.closed
    assert reason(caught.value) == "there is another device now"

    def absinfo(self: FakeNode, axis: int) -> None:
        raise OSError(errno.ENODEV, "gone")

    opened.closed = False
    monkeypatch.setattr(FakeNode, "absinfo", absinfo)
    with pytest.raises(OSError, match="gone"):
        open_same("node", Description())
    assert opened.closed


def test_status_is_written_as_the_kernel_takes_it() -> None:
    reader, writer = os.pipe()
    write_events(FakeNode(fd=writer), pack((0x11, 1, 1), SYN))
    assert os.read(reader, 100) == INPUT_EVENT.pack(0, 0, 0x11, 1, 1) + INPUT_EVENT.pack(0, 0, *SYN)
    os.close(reader)
    os.close(writer)


def test_what_is_drained_is_forgotten() -> None:
    reader, writer = os.pipe2(os.O_NONBLOCK)
    os.write(writer, bytes(50_000))
    drain(FakeNode(fd=reader))
    with pytest.raises(BlockingIOError):
        os.read(reader, 1)
    os.close(reader)
    os.close(writer)
