"""Checks a program's answer against QEMU's conventions for back-end programs."""

import json
from collections.abc import Iterator

from vhostd.conformance.schema import Kind, faults
from vhostd.ctl.libvirt.answer import Answer
from vhostd.ctl.libvirt.json_text import NotJson, read


def deviations(answer: Answer, kind: str = "") -> Iterator[str]:
    """The faults of a program's answer, one sentence each. `kind` is the type in its description."""
    if answer.fault or answer.excess:
        yield answer.fault or answer.excess
        return
    if answer.end:
        yield f"it {answer.end}"
    try:
        document = read(answer.output)
    except NotJson as error:
        yield f"what it prints is not JSON: {error}"
        return
    for fault in faults(document, Kind.CAPABILITIES):
        yield f"what it prints, at {fault.place}: {fault.message}"
    if kind and isinstance(document, dict) and document.get("type", kind) != kind:
        yield f"it calls itself a program of type {json.dumps(document['type'])}"
