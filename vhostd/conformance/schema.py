"""Checks descriptions and capabilities by `vhost-user.schema.json`; its messages say what to do.

The schema is QEMU's `vhost-user.json` in JSON Schema. Real files deviate from it without harm: descriptions
have other members, or no text for a person; programs have features of their own.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from vhostd.program.shipped import DESCRIPTIONS, shipped

SCHEMA = "vhost-user.schema.json"
SHOWN = 60  # characters of a value, at most
TYPES_OF_JSON = {"object": "an object", "array": "an array", "string": "a string"}


class Kind(StrEnum):
    """The two kinds of document, by their names in the schema."""

    DESCRIPTION = "description"
    CAPABILITIES = "capabilities"


@dataclass(frozen=True)
class Fault:
    """A fault, and its place as a JSONPath. `tolerable` if management software ignores it."""

    place: str
    message: str
    tolerable: bool = False


def kind_of(document: Any) -> Kind:
    """The kind that a document is meant to be, by its members."""
    capable = isinstance(document, dict) and not document.keys() & {"binary", "description", "tags"}
    return Kind.CAPABILITIES if capable else Kind.DESCRIPTION


def faults(document: Any, kind: Kind) -> list[Fault]:
    """All faults of a document."""
    found = [fault for error in _validator(kind).iter_errors(document) for fault in _faults(error)]
    return sorted(set(found), key=lambda fault: (fault.tolerable, fault.place, fault.message))


@cache
def _validator(kind: Kind) -> Draft202012Validator:
    definitions = json.loads((shipped(*DESCRIPTIONS) / SCHEMA).read_bytes())["$defs"]
    return Draft202012Validator({"$ref": f"#/$defs/{kind}", "$defs": definitions})


def _faults(error: ValidationError) -> Iterator[Fault]:
    place = error.json_path
    value: Any = error.instance
    wanted: Any = error.validator_value
    schema: Any = error.schema
    about = error.path[0] if error.path else ""
    match error.validator:
        case "required":
            for name in sorted(set(wanted) - set(value)):
                tolerable = name == "description" or (name == "features" and value.get("type") != "gpu")
                yield Fault(place, f'"{name}" is missing', tolerable)
        case "additionalProperties":
            for name in sorted(set(value) - set(schema["properties"])):
                yield Fault(place, f"QEMU's schema has no member {_shown(name)}: remove it", tolerable=True)
        case "type":
            yield Fault(
                place, f"{_shown(value)} is not {TYPES_OF_JSON[wanted]}", about in ("description", "tags")
            )
        case "enum":
            yield Fault(place, f"{_shown(value)} is none of {_choices(value, wanted)}", about == "features")
        case "minLength":
            yield Fault(place, "it is empty: say for a person what the program is", tolerable=True)
        case "maxItems":
            yield Fault(place, "this type has no features: leave the list empty", tolerable=True)
        case "uniqueItems":
            yield Fault(place, "it has something twice", tolerable=True)
        case "pattern":
            yield Fault(place, f"{_shown(value)} is no absolute path")
        case _:
            yield Fault(place, error.message.splitlines()[0])


def _choices(value: object, wanted: list[str]) -> str:
    near = get_close_matches(str(value).lower(), wanted, n=1)
    return ", ".join(wanted) + (f": did you mean {_shown(near[0])}?" if near else "")


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
