"""What of an answer is not as QEMU's conventions want it."""

import pytest

from vhostd.ctl.conventions import deviations
from vhostd.ctl.libvirt.answer import Answer


@pytest.mark.parametrize(
    "output",
    [
        b'{"type": "gpu", "features": []}',
        b'{\n  "type": "fs",\n  "features": ["migrate-precopy", "separate-options"]\n}\n',  # virtiofsd
        b'{\n  "type": "net"\n}\n',
        b'{"type": "rng", "features": []}',
    ],
)
def test_answers_as_they_are_to_be(output: bytes) -> None:
    assert not list(deviations(Answer(output=output)))


def test_each_deviation_is_told() -> None:
    answer = Answer(status=1, output=b'{"type": "gpu", "features": ["3d"], "version": 1}')
    assert list(deviations(answer, "input")) == [
        "it exits with status 1",
        'what it prints, at $: QEMU\'s schema has no member "version": remove it',
        'what it prints, at $.features[0]: "3d" is none of render-node, virgl',
        'it calls itself a program of type "gpu"',
    ]


@pytest.mark.parametrize(
    ("answer", "deviation"),
    [
        (Answer("it names no program"), "it names no program"),
        (Answer(excess="it prints more than 4 MiB"), "it prints more than 4 MiB"),
        (Answer(), "what it prints is not JSON: it is empty"),
        (Answer(output=b"starting\n{}"), "what it prints is not JSON: line 1, column 1: expecting value"),
        (Answer(output=b"{} {}"), "what it prints is not JSON: line 1, column 4: extra data"),
    ],
)
def test_what_is_no_answer(answer: Answer, deviation: str) -> None:
    assert list(deviations(answer, "gpu")) == [deviation]
