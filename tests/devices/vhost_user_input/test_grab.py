import errno

import pytest

from tests.devices.vhost_user_input.fake_node import FakeNode
from vhost_user_input import grab


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> FakeNode:
    made = FakeNode()
    monkeypatch.setattr(grab, "held_keys", lambda node: list(node.held))
    return made


def test_it_is_taken_and_given(node: FakeNode) -> None:
    assert grab.take(node, alone=True) == ""
    assert node.grabbed
    grab.give(node)
    assert not node.grabbed


def test_not_while_a_key_is_down(node: FakeNode) -> None:
    node.held = [28]
    for alone in (True, False):
        assert grab.take(node, alone=alone) == "keys are down"
    assert node.grabs == 0


def test_a_key_that_goes_down_meanwhile_stays_the_hosts(node: FakeNode) -> None:
    node.late = [30]
    assert grab.take(node, alone=True) == "keys are down"
    assert (node.grabs, node.grabbed) == (1, False)


def test_not_alone(node: FakeNode) -> None:
    assert grab.take(node, alone=False) == ""
    assert not node.grabbed


def test_another_program_has_it(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    node.taken = True
    assert grab.take(node, alone=True) == "another program has grabbed it"


def test_a_device_that_is_gone(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(self: FakeNode) -> None:
        raise OSError(errno.ENODEV, "No such device")

    monkeypatch.setattr(FakeNode, "grab", gone)
    monkeypatch.setattr(FakeNode, "ungrab", gone)
    with pytest.raises(OSError, match="No such device"):
        grab.take(node, alone=True)
    grab.give(node)
