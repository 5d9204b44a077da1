"""Devices that Debian's User-mode Linux has no drivers for: as it boots it talks to their programs too."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.programs import Program, executable, listening
from tests.uml.linux import Device, Linux
from vhostd.virtio.vocabulary import DeviceType

pytestmark = pytest.mark.guest

COMMANDS = {
    DeviceType.RNG: ["vhost-user-rng"],
    DeviceType.GPU: ["vhost-user-gpu"],
    DeviceType.INPUT: ["vhost-user-input", "--event-socket={folder}/events"],
}


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[dict[DeviceType, Program]]:
    """A program of each kind."""
    with ExitStack() as stack:
        yield {
            kind: stack.enter_context(
                listening(
                    [executable(name), *(option.format(folder=tmp_path) for option in options)],
                    tmp_path / f"{kind:d}",
                )
            )
            for kind, (name, *options) in COMMANDS.items()
        }


def test_the_guest_boots(programs: dict[DeviceType, Program], tmp_path: Path) -> None:
    """It waits for an ack of the message that negotiates acks, before its kernel has a console."""
    with Linux(tmp_path, *(Device(tmp_path / f"{kind:d}", kind) for kind in programs)) as linux:
        found = linux.shell("cat /sys/bus/virtio/devices/*/device").split()
        assert [int(kind, 16) for kind in found] == list(programs)
    for program in programs.values():
        program.hear("the front-end has gone")
        program.stop()
