"""Backend descriptions: the files that tell management software where a program is and what it is for.

Checked against `vhost-user.schema.json`, which says in JSON Schema what QEMU's `vhost-user.json` says.
"""

import json
import sys
import sysconfig
from functools import cache
from pathlib import Path
from typing import Annotated

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match
from pydantic import AfterValidator, BaseModel

from vhostd.errors import SetupError

SCHEMA = "share/vhost-user/vhost-user.schema.json"


def _absolute(path: Path) -> Path:
    if not path.is_absolute():
        raise ValueError(f"{path} is not an absolute path")
    return path


class BackendDescription(BaseModel, frozen=True, extra="forbid"):
    """One description: `type` as in `DeviceType.description_type`, `tags` for the management software."""

    description: str
    type: str
    binary: Annotated[Path, AfterValidator(_absolute)]
    tags: tuple[str, ...] = ()


def load(path: str | Path) -> BackendDescription:
    """Reads and checks a description; raises SetupError with the file, the place in it and what is wrong."""
    try:
        document = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise SetupError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise SetupError(f"{path}: not JSON: {error}") from None
    if fault := best_match(_validator().iter_errors(document)):
        raise SetupError(f"{path}: at {fault.json_path}: {fault.message}")
    return BackendDescription.model_validate(document)


@cache
def _validator() -> Draft202012Validator:
    """Beside the package in a checkout; below one of the prefixes once installed."""
    roots = (Path(__file__).parents[1], Path(sysconfig.get_path("data")), Path(sys.prefix))
    schema = next((root / SCHEMA for root in roots if (root / SCHEMA).is_file()), None)
    if schema is None:
        raise SetupError(f"{SCHEMA} is in none of {', '.join(map(str, roots))}")
    return Draft202012Validator(
        {"$ref": "#/$defs/description", "$defs": json.loads(schema.read_bytes())["$defs"]}
    )
