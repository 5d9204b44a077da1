"""libvirt's decision on a program, after the program has printed its capabilities.

libvirt starts programs of two types. It skips a program for a video device that does not answer. It tries a
virtiofsd that does not answer, as one without any features.
"""

from dataclasses import dataclass
from typing import Any

from vhostd.ctl.libvirt.answer import Answer
from vhostd.ctl.libvirt.discovery import Entry, State
from vhostd.ctl.libvirt.json_text import TOLERANT, Dialect, NotJson, read_as_libvirt, word

RENDER_NODE = "render-node"


@dataclass(frozen=True)
class Judgement:
    """USED, SKIPPED or FAILS, and why. `features` are the features that libvirt has read."""

    state: State
    reason: str = ""
    features: tuple[str, ...] = ()


def judge(kind: str, answer: Answer, *, render_node: bool, dialect: Dialect = TOLERANT) -> Judgement:
    """libvirt's decision on a program of type gpu or fs. `render_node`: whether the host has one.

    `dialect` is libvirt's dialect of JSON.
    """
    if answer.excess:
        return Judgement(State.FAILS, f"{answer.excess}, and libvirt sets no limits: it may wait for ever")
    if kind == "fs":
        return _judge_fs(answer, dialect)
    return _judge_gpu(answer, dialect, render_node=render_node)


def _judge_gpu(answer: Answer, dialect: Dialect, *, render_node: bool) -> Judgement:
    if answer.fault:
        return Judgement(State.SKIPPED, answer.fault)
    if answer.end:
        return Judgement(State.SKIPPED, f"it {answer.end}")
    try:
        features = _features(read_as_libvirt(answer.output, dialect))
    except NotJson as error:
        return Judgement(State.SKIPPED, f"what it prints is not JSON: {error}")
    if features is None:
        return Judgement(State.SKIPPED, "what it prints has no list of features")
    if RENDER_NODE in features and not render_node:
        reason = f"it has the feature {RENDER_NODE}, and the host has no render node: libvirt gives up"
        return Judgement(State.FAILS, reason, features)
    return Judgement(State.USED, features=features)


def _judge_fs(answer: Answer, dialect: Dialect) -> Judgement:
    if answer.fault:
        return Judgement(State.FAILS, f"{answer.fault}; libvirt tries it all the same")
    if answer.end:
        return Judgement(State.USED, f"it {answer.end}; libvirt takes it to have no features")
    try:
        return Judgement(State.USED, features=_features(read_as_libvirt(answer.output, dialect)) or ())
    except NotJson as error:
        return Judgement(State.SKIPPED, f"what it prints is not JSON: {error}")


def _features(document: Any) -> tuple[str, ...] | None:
    features = document.get("features") if isinstance(document, dict) else None
    return tuple(filter(None, map(word, features))) if isinstance(features, list) else None


def choose(judgements: dict[Entry, Judgement]) -> dict[Entry, Judgement]:
    """The same decisions, in libvirt's order. For each type, those after the first usable one are SPARE."""
    taken: dict[str, Entry] = {}
    chosen = {}
    for entry, judgement in judgements.items():
        if judgement.state == State.SKIPPED:
            chosen[entry] = judgement
        elif entry.type in taken:
            reason = f"{taken[entry.type].path} comes first, unless a domain asks for a feature that it lacks"
            chosen[entry] = Judgement(State.SPARE, reason, judgement.features)
        else:
            taken[entry.type] = entry
            chosen[entry] = judgement
    return chosen
