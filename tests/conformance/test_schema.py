"""The faults of documents, in words."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostd.conformance.schema import Fault, Kind, faults, kind_of

GPU = {"description": "a display", "type": "gpu", "binary": "/usr/bin/gpu"}
QEMU_GPU = {"description": "QEMU vhost-user-gpu", "type": "gpu", "binary": "/usr/lib/qemu/vhost-user-gpu"}
VIRTIOFSD = {
    "description": "virtiofsd vhost-user-fs",
    "type": "fs",
    "binary": "/usr/libexec/virtiofsd",
    "features": ["migrate-precopy", "separate-options"],
}
VIRTIOFSD_CAPABILITIES = {"type": "fs", "features": ["migrate-precopy", "separate-options"]}
TOLERABLE: dict[str, tuple[Kind, Any, list[str]]] = {
    "a member more": (Kind.DESCRIPTION, VIRTIOFSD, ['$: QEMU\'s schema has no member "features": remove it']),
    "nothing to read": (
        Kind.DESCRIPTION,
        {"type": "gpu", "binary": "/usr/bin/gpu"},
        ['$: "description" is missing'],
    ),
    "emptiness to read": (
        Kind.DESCRIPTION,
        GPU | {"description": ""},
        ["$.description: it is empty: say for a person what the program is"],
    ),
    "tags in one string": (Kind.DESCRIPTION, GPU | {"tags": "fast"}, ['$.tags: "fast" is not an array']),
    "tag": (Kind.DESCRIPTION, GPU | {"tags": [5]}, ["$.tags[0]: 5 is not a string"]),
    "a feature of its own": (
        Kind.CAPABILITIES,
        {"type": "gpu", "features": ["3d"]},
        ['$.features[0]: "3d" is none of render-node, virgl'],
    ),
    "a feature twice": (
        Kind.CAPABILITIES,
        {"type": "fs", "features": ["a", "a"]},
        ["$.features: it has something twice"],
    ),
    "features that there are none of": (
        Kind.CAPABILITIES,
        {"type": "rng", "features": ["fast"]},
        ["$.features: this type has no features: leave the list empty"],
    ),
    "no list of features": (Kind.CAPABILITIES, {"type": "block"}, ['$: "features" is missing']),
}
FATAL: dict[str, tuple[Kind, Any, list[str]]] = {
    "no object": (Kind.DESCRIPTION, [], ["$: [] is not an object"]),
    "nothing": (Kind.DESCRIPTION, {"description": "a"}, ['$: "binary" is missing', '$: "type" is missing']),
    "no path": (Kind.DESCRIPTION, GPU | {"binary": "gpu"}, ['$.binary: "gpu" is no absolute path']),
    "no type": (Kind.CAPABILITIES, {"features": ["whatever"]}, ['$: "type" is missing']),
    "no features of a display": (Kind.CAPABILITIES, {"type": "gpu"}, ['$: "features" is missing']),
    "feature that is none": (
        Kind.CAPABILITIES,
        {"type": "fs", "features": [5]},
        ["$.features[0]: 5 is not a string"],
    ),
    "features that are none": (
        Kind.CAPABILITIES,
        {"type": "fs", "features": 7},
        ["$.features: 7 is not an array"],
    ),
}


def told(found: list[Fault]) -> list[str]:
    return [f"{fault.place}: {fault.message}" for fault in found]


@pytest.mark.parametrize("document", [GPU, QEMU_GPU, GPU | {"tags": []}])
def test_good_descriptions(document: Any) -> None:
    assert kind_of(document) == Kind.DESCRIPTION
    assert not faults(document, Kind.DESCRIPTION)


@pytest.mark.parametrize(
    "document", [VIRTIOFSD_CAPABILITIES, {"type": "net"}, {"type": "rng", "features": []}]
)
def test_good_capabilities(document: Any) -> None:
    assert kind_of(document) == Kind.CAPABILITIES
    assert not faults(document, Kind.CAPABILITIES)


@pytest.mark.parametrize(("kind", "document", "messages"), TOLERABLE.values(), ids=TOLERABLE)
def test_what_can_be_lived_with(kind: Kind, document: Any, messages: list[str]) -> None:
    found = faults(document, kind)
    assert told(found) == messages
    assert all(fault.tolerable for fault in found)


@pytest.mark.parametrize(("kind", "document", "messages"), FATAL.values(), ids=FATAL)
def test_what_cannot(kind: Kind, document: Any, messages: list[str]) -> None:
    found = [fault for fault in faults(document, kind) if not fault.tolerable]
    assert told(found) == messages


@pytest.mark.parametrize(
    ("kind", "hint"),
    [("blk", "block"), ("GPU", "gpu"), ("vsocket", "vsock"), ("sound", ""), (5, ""), (None, "")],
)
def test_a_type_that_is_almost_one(kind: Any, hint: str) -> None:
    ((fault),) = faults(GPU | {"type": kind}, Kind.DESCRIPTION)
    assert fault.place == "$.type"
    assert "is none of 9p, balloon, block" in fault.message
    assert fault.message.endswith(f'did you mean "{hint}"?' if hint else "vsock")


def test_long_values_are_cut() -> None:
    (fault,) = faults(GPU | {"type": "x" * 10_000}, Kind.DESCRIPTION)
    assert len(fault.message) < 300


def test_a_document_that_is_neither_is_taken_for_a_description() -> None:
    assert kind_of([]) == kind_of(None) == Kind.DESCRIPTION
    assert kind_of({"type": "gpu", "binary": "/a", "features": []}) == Kind.DESCRIPTION


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
NAMES = st.sampled_from(["description", "type", "binary", "tags", "features"]) | st.text(max_size=3)
KINDS = st.sampled_from(["gpu", "rng", "block", "fs", "sound"])


@given(VALUES | st.dictionaries(NAMES, VALUES | KINDS | st.lists(KINDS)), st.sampled_from(Kind))
def test_any_document_can_be_checked(document: Any, kind: Kind) -> None:
    for fault in faults(document, kind):
        assert "\n" not in fault.message
