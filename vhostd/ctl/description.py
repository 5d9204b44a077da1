"""Backend descriptions: the files that tell management software where a program is and what it is for."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel

from vhostd.ctl.libvirt.json_text import NotJson, read
from vhostd.ctl.schema import Kind, faults
from vhostd.errors import SetupError


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
        document = read(Path(path).read_bytes())
    except OSError as error:
        raise SetupError(f"{path}: {error.strerror}") from None
    except NotJson as error:
        raise SetupError(f"{path}: not JSON: {error}") from None
    for fault in faults(document, Kind.DESCRIPTION):
        raise SetupError(f"{path}: at {fault.place}: {fault.message}")
    return BackendDescription.model_validate(document)
