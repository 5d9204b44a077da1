"""Backend descriptions: files that tell management software where a program is, and its type."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel

from vhostd.conformance.schema import Kind, faults
from vhostd.ctl.libvirt.json_text import NotJson, read
from vhostd.errors import SetupError


def _absolute(path: Path) -> Path:
    if not path.is_absolute():
        raise ValueError(f"{path} is not an absolute path")
    return path


class BackendDescription(BaseModel, frozen=True, extra="forbid"):
    """One description. `type` is as in `DeviceType.description_type`; `tags` are for management software."""

    description: str
    type: str
    binary: Annotated[Path, AfterValidator(_absolute)]
    tags: tuple[str, ...] = ()


def load(path: str | Path) -> BackendDescription:
    """Reads and checks a description; raises SetupError, which names the file, the place and the fault."""
    try:
        document = read(Path(path).read_bytes())
    except OSError as error:
        raise SetupError(f"{path}: {error.strerror}") from None
    except NotJson as error:
        raise SetupError(f"{path}: not JSON: {error}") from None
    for fault in faults(document, Kind.DESCRIPTION):
        raise SetupError(f"{path}: at {fault.place}: {fault.message}")
    return BackendDescription.model_validate(document)
