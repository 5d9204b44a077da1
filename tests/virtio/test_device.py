"""What is said of a device as soon as its class is there."""

import pytest

from vhostd.virtio.device import Device, Handler


@pytest.mark.parametrize("name", ["queues", "calls"])
def test_a_method_where_a_property_should_be(name: str) -> None:
    with pytest.raises(TypeError, match=rf"Lamp\.{name} is a method: write @property above it"):
        type("Lamp", (Device,), {name: lambda _: []})


def test_queues_may_be_a_property_or_stand_in_the_class() -> None:
    class Lamp(Device):
        queues: list[Handler] = []  # noqa: RUF012

    assert Lamp().queues == []
