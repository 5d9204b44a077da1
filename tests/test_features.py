"""The page of features is true: what is offered, what can be chosen, and a test for each that is there."""

import re
from pathlib import Path

import pytest

from vhostd.vhost_user.messages import ProtocolFeature
from vhostd.vhost_user.offer import CHOICES
from vhostd.virtio.vocabulary import Feature
from vhostd.wire.rows import Bit

CHECKOUT = Path(__file__).parents[1]
PAGE = (CHECKOUT / "docs/features.md").read_text()
ROW = re.compile(r"^\| (\d+) \| ([A-Z_0-9]+).*? \| ([^|]+) \|.* \| (.*) ?\|$", re.MULTILINE)
TEST = re.compile(r"`(tests/[\w/]+\.py): (test_\w+)`")
REASON = re.compile(r"^\| (`[^|]*`) \| (yes|no) \| ", re.MULTILINE)
ROWS = {name: (int(bit), here, shown) for bit, name, here, shown in ROW.findall(PAGE)}
ALWAYS = {"MQ", "REPLY_ACK", "CONFIG", "VERSION_1"}
UNSAID = {"PROTOCOL_FEATURES"}  # that there are protocol features


def bits(kind: type[object]) -> dict[str, int]:
    """The bits that a class names."""
    return {name: bit for name, bit in vars(kind).items() if isinstance(bit, Bit)}


def test_every_feature_has_its_row() -> None:
    known = {**bits(ProtocolFeature), **bits(Feature)}
    assert {name: ROWS[name][0] for name in known if name not in UNSAID} == {
        name: int(bit) for name, bit in known.items() if name not in UNSAID
    }


@pytest.mark.parametrize("name", ROWS)
def test_a_row_says_whether_the_feature_is_offered(name: str) -> None:
    choice = CHOICES.get(name.lower().replace("_", "-"))
    _, here, _ = ROWS[name]
    if name == "LOG_ALL":
        assert here == "with LOG_SHMFD"
    elif choice is None:
        assert here == ("always" if name in ALWAYS else "no")
    else:
        assert here == ("yes" if choice.by_default else "on request")


@pytest.mark.parametrize("name", ROWS)
def test_a_feature_that_is_there_is_shown_by_a_test(name: str) -> None:
    _, here, shown = ROWS[name]
    found = TEST.findall(shown)
    assert bool(found) == (here != "no")
    for place, test in found:
        assert f"def {test}(" in (CHECKOUT / place).read_text()


def test_each_default_has_its_reason() -> None:
    reasons = {
        name: default == "yes"
        for names, default in REASON.findall(PAGE)
        for name in re.findall(r"`([^`]+)`", names)
    }
    assert reasons == {name: choice.by_default for name, choice in CHOICES.items()}
