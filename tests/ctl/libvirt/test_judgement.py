"""What libvirt decides when a program has answered, for the two types that it starts."""

from pathlib import Path

import pytest

from vhostd.ctl.libvirt.answer import Answer
from vhostd.ctl.libvirt.discovery import Entry, State
from vhostd.ctl.libvirt.judgement import Judgement, choose, judge

GOOD = b'{"type": "gpu", "features": ["virgl"]}'
USED, SKIPPED, FAILS = State.USED, State.SKIPPED, State.FAILS
# As libvirt 11.3 does: the answer, and what becomes of it as a display, and as a virtiofsd.
ANSWERS: dict[str, tuple[Answer, State, State]] = {
    "good": (Answer(output=GOOD), USED, USED),
    "no program": (Answer("it names no program"), SKIPPED, FAILS),
    "status": (Answer(status=1, output=GOOD), SKIPPED, USED),
    "signal": (Answer(status=-9, output=GOOD), SKIPPED, USED),
    "nothing": (Answer(), SKIPPED, SKIPPED),
    "garbage": (Answer(output=b"virtiofsd 1.0"), SKIPPED, SKIPPED),
    "null": (Answer(output=b"null"), SKIPPED, SKIPPED),
    "array": (Answer(output=b"[]"), SKIPPED, USED),
    "string": (Answer(output=b'"fs"'), SKIPPED, USED),
    "no features": (Answer(output=b'{"type": "fs"}'), SKIPPED, USED),
    "features null": (Answer(output=b'{"features": null}'), SKIPPED, USED),
    "features object": (Answer(output=b'{"features": {}}'), SKIPPED, USED),
    "too long": (Answer(excess="it has not ended within 10 s"), FAILS, FAILS),
}


@pytest.mark.parametrize(("answer", "as_gpu", "as_fs"), ANSWERS.values(), ids=ANSWERS)
def test_displays_and_file_systems_differ(answer: Answer, as_gpu: State, as_fs: State) -> None:
    assert judge("gpu", answer, render_node=True).state == as_gpu
    assert judge("fs", answer, render_node=True).state == as_fs


def test_features_are_those_that_libvirt_can_read() -> None:
    answer = Answer(output=b'{"features": ["virgl", 5, null, "", "3d\\u0000x", ["a"]]}')
    for kind in ("gpu", "fs"):
        assert judge(kind, answer, render_node=False) == Judgement(USED, features=("virgl", "3d"))


def test_a_render_node_is_needed_by_whoever_can_take_one() -> None:
    answer = Answer(output=b'{"features": ["render-node"]}')
    assert judge("gpu", answer, render_node=True).state == USED
    assert judge("gpu", answer, render_node=False).state == FAILS
    assert judge("fs", answer, render_node=False).state == USED


def test_the_reason_says_what_the_program_did() -> None:
    def reason(kind: str, answer: Answer) -> str:
        return judge(kind, answer, render_node=True).reason

    assert reason("gpu", Answer(status=1)) == "it exits with status 1"
    assert reason("fs", Answer(status=-9)) == "it is killed by SIGKILL; libvirt takes it to have no features"
    assert reason("gpu", Answer(output=b"hi")).startswith("what it prints is not JSON: line 1, column 1:")
    assert reason("gpu", Answer(output=b"{}")) == "what it prints has no list of features"
    assert reason("gpu", Answer(excess="it has not ended within 10 s")).startswith(
        "it has not ended within 10 s"
    )


def test_the_first_of_each_type_that_is_not_skipped_is_chosen() -> None:
    def entry(name: str, kind: str) -> Entry:
        return Entry(Path("/etc", name), State.CANDIDATE, type=kind, binary="/usr/bin/it")

    given = {
        entry("10", "gpu"): Judgement(SKIPPED, "it exits with status 1"),
        entry("20", "fs"): Judgement(FAILS, "it names no program"),
        entry("30", "gpu"): Judgement(USED),
        entry("40", "gpu"): Judgement(USED, features=("virgl",)),
        entry("50", "gpu"): Judgement(SKIPPED, "it exits with status 1"),
        entry("60", "fs"): Judgement(USED),
    }
    chosen = choose(given)
    assert list(chosen) == list(given)
    assert [each.state for each in chosen.values()] == [
        SKIPPED,
        FAILS,
        USED,
        State.SPARE,
        SKIPPED,
        State.SPARE,
    ]
    spare = chosen[entry("40", "gpu")]
    assert spare.reason == "/etc/30 comes first, unless a domain asks for a feature that it lacks"
    assert spare.features == ("virgl",)
