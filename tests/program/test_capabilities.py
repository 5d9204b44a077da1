import json
from typing import ClassVar

import pytest

from vhostd.program.capabilities import capabilities
from vhostd.virtio.device import Device
from vhostd.virtio.vocabulary import DeviceType


class Plain(Device):
    kind = DeviceType.NINEP


class Featured(Device):
    kind = DeviceType.INPUT
    capabilities: ClassVar[tuple[str, ...]] = ("evdev-path", "no-grab")


@pytest.mark.parametrize(
    ("kind", "printed"),
    [
        (Plain, {"type": "9p", "features": []}),
        (Featured, {"type": "input", "features": ["evdev-path", "no-grab"]}),
    ],
)
def test_capabilities_are_the_type_and_the_features_of_the_device(
    kind: type[Device], printed: dict[str, object]
) -> None:
    assert json.loads(capabilities(kind)) == printed


def test_capabilities_are_one_line() -> None:
    assert len(capabilities(Featured).splitlines()) == 1
