"""The descriptions that are installed, what the programs print, and the schema for both."""

import importlib
import json
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from vhostd import Manifest
from vhostd.ctl.description import BackendDescription, load
from vhostd.errors import SetupError

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "share/vhost-user"
SCHEMA = json.loads((FOLDER / "vhost-user.schema.json").read_text())
DESCRIPTIONS = sorted(FOLDER.glob("*-vhostd-*.json"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PROGRAMS: dict[str, str] = PROJECT["entry-points"]["vhostd.programs"]

GOOD = {"description": "a disk", "type": "block", "binary": "/usr/bin/disk", "tags": ["fast"]}
GOOD_CAPABILITIES = {"type": "block", "features": ["blk-file", "read-only"]}


def manifest_of(program: str) -> Manifest:
    """What a program says of itself."""
    manifest: Manifest = importlib.import_module(PROGRAMS[program].partition(":")[0]).MANIFEST
    return manifest


def validator(definition: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator({"$ref": f"#/$defs/{definition}", "$defs": SCHEMA["$defs"]})


def write(folder: Path, document: object) -> Path:
    path = folder / "description.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


# --- What is installed ----------------------------------------------------------------------------------


def test_the_schema_is_one_and_takes_both_forms() -> None:
    for document in (GOOD, GOOD_CAPABILITIES):
        jsonschema.validate(document, SCHEMA)
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"


@pytest.mark.parametrize("path", DESCRIPTIONS, ids=lambda path: path.name)
def test_a_description_is_valid_and_names_a_program_of_ours(path: Path) -> None:
    description = load(path)
    assert description.binary.parent == Path("/usr/bin")
    assert path.name == f"50-vhostd-{description.type}.json"
    assert manifest_of(description.binary.name).type == description.type


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_s_capabilities_are_valid(program: str) -> None:
    validator("capabilities").validate(json.loads(str(manifest_of(program))))


def test_every_program_has_a_description() -> None:
    assert {load(path).binary.name for path in DESCRIPTIONS} == set(PROGRAMS)


# --- The schema -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SCHEMA["$defs"]["type"]["enum"])
def test_every_type_of_the_conventions_is_accepted(kind: str) -> None:
    validator("description").validate(GOOD | {"type": kind})
    validator("capabilities").validate({"type": kind, "features": []})


def test_types_are_those_of_the_conventions() -> None:
    """As QEMU's vhost-user.json lists them."""
    types = "9p balloon block caif console crypto fs gpu input net rng rpmsg rproc-serial scsi vsock"
    assert SCHEMA["$defs"]["type"]["enum"] == types.split()


@pytest.mark.parametrize(
    ("kind", "features"),
    [
        ("block", ["blk-file", "read-only"]),
        ("input", ["evdev-path", "no-grab"]),
        ("gpu", ["render-node", "virgl"]),
        ("net", ["whatever"]),
    ],
)
def test_features_of_the_conventions_are_accepted(kind: str, features: list[str]) -> None:
    validator("capabilities").validate({"type": kind, "features": features})


WRONG_DESCRIPTIONS: dict[str, tuple[Any, str]] = {
    "no object": ([], r"at \$: \[\] is not an object"),
    "nothing": ({}, r'at \$: "binary" is missing'),
    "no description": ({**GOOD, "description": ""}, r"at \$\.description: it is empty"),
    "description of a wrong type": (
        GOOD | {"description": 5},
        r"at \$\.description: 5 is not a string",
    ),
    "unknown type": (GOOD | {"type": "blk"}, r'at \$\.type: "blk" is none of .*: did you mean "block"'),
    "type in capitals": (GOOD | {"type": "Block"}, r'at \$\.type: "Block" is none of'),
    "type that is none": (GOOD | {"type": None}, r"at \$\.type: null is none of"),
    "relative binary": (GOOD | {"binary": "bin/disk"}, r'at \$\.binary: "bin/disk" is no absolute path'),
    "empty binary": (GOOD | {"binary": ""}, r'at \$\.binary: "" is no absolute path'),
    "binary that is none": (
        GOOD | {"binary": ["/usr/bin/disk"]},
        r"at \$\.binary: .* is not a string",
    ),
    "tags in one string": (GOOD | {"tags": "fast"}, r'at \$\.tags: "fast" is not an array'),
    "tag that is none": (GOOD | {"tags": ["fast", 7]}, r"at \$\.tags\[1\]: 7 is not a string"),
    "features": (GOOD | {"features": []}, r"at \$: QEMU's schema has no member \"features\""),
    "capabilities": (GOOD_CAPABILITIES, r"at \$: "),
}
WRONG_CAPABILITIES: dict[str, Any] = {
    "no object": [],
    "no type": {"features": []},
    "no features": {"type": "gpu"},
    "unknown type": {"type": "blk", "features": []},
    "features that are none": {"type": "block", "features": "blk-file"},
    "feature that is none": {"type": "net", "features": [1]},
    "feature twice": {"type": "block", "features": ["blk-file", "blk-file"]},
    "feature of another type": {"type": "block", "features": ["virgl"]},
    "feature that does not exist": {"type": "gpu", "features": ["3d"]},
    "feature of a type without any": {"type": "rng", "features": ["fast"]},
    "something else": GOOD_CAPABILITIES | {"binary": "/usr/bin/disk"},
    "a description": GOOD,
}


@pytest.mark.parametrize(("document", "complaint"), WRONG_DESCRIPTIONS.values(), ids=WRONG_DESCRIPTIONS)
def test_a_wrong_description_is_refused_in_one_line(document: Any, complaint: str, tmp_path: Path) -> None:
    path = write(tmp_path, document)
    with pytest.raises(SetupError, match=complaint) as refused:
        load(path)
    assert str(refused.value).startswith(f"{path}: ")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("document", WRONG_CAPABILITIES.values(), ids=WRONG_CAPABILITIES)
def test_wrong_capabilities_are_refused(document: Any) -> None:
    assert not validator("capabilities").is_valid(document)


# --- Loading --------------------------------------------------------------------------------------------


def test_a_description_is_loaded(tmp_path: Path) -> None:
    assert load(write(tmp_path, GOOD)) == BackendDescription(
        description="a disk", type="block", binary=Path("/usr/bin/disk"), tags=("fast",)
    )
    untagged = {name: value for name, value in GOOD.items() if name != "tags"}
    assert load(str(write(tmp_path, untagged))).tags == ()


def test_a_description_names_an_absolute_path_however_it_is_made() -> None:
    with pytest.raises(ValueError, match="bin/disk is not an absolute path"):
        BackendDescription(description="a disk", type="block", binary=Path("bin/disk"))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "not JSON: "),
        ("{", "not JSON: .*line 1"),
        ("[" * 100_000, "not JSON: "),
        ("\udcff", "not JSON: "),
    ],
    ids=["empty", "cut", "deep", "not UTF-8"],
)
def test_what_is_no_json_is_refused_in_one_line(text: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "description.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(SetupError, match=complaint) as refused:
        load(path)
    assert "\n" not in str(refused.value)


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"missing\.json: No such file or directory"):
        load(tmp_path / "missing.json")
    with pytest.raises(SetupError, match="Is a directory"):
        load(tmp_path)
