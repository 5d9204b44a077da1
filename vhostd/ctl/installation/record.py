"""The record of an installation: only files in it are updated or removed later."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ValidationError

from vhostd.ctl.installation.places import Places
from vhostd.ctl.regular import open_regular
from vhostd.errors import SetupError


class Record(BaseModel, extra="forbid"):
    """The files, each with the SHA-256 of its content, and the folders that were made for them."""

    files: dict[Path, str] = {}
    folders: list[Path] = []

    @classmethod
    def load(cls, path: Path) -> Self | None:
        """Reads a record from a file; None without a file. Raises SetupError if the file is not a record."""
        try:
            with open_regular(path) as file:
                return cls.model_validate_json(file.read())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise SetupError(f"{path}: {error.strerror}") from None
        except ValidationError as error:
            raise SetupError(f"{path} is no record of an installation: {error.errors()[0]['msg']}") from None

    def dump(self) -> bytes:
        """The record as the content of a file."""
        return f"{self.model_dump_json(indent=2)}\n".encode()

    def is_unchanged(self, path: Path) -> bool:
        """Whether the file still has the content that was written."""
        return is_regular(path) and self.files.get(path) == digest(path.read_bytes())

    def remove(self, paths: Iterable[Path]) -> None:
        """Removes files from the record, before they are removed."""
        for path in paths:
            del self.files[path]

    def add(self, files: Mapping[Path, bytes], folders: Iterable[Path]) -> None:
        """Adds files before they are written, and the folders that are made for them."""
        self.files |= {path: digest(data) for path, data in files.items()}
        self.folders = sorted({*self.folders, *folders})


def installed(places: Places) -> Record | None:
    """The record of an installation in these places; SetupError if it names a file anywhere else."""
    record = Record.load(places.record)
    if record:
        strange = [path for path in record.files if not places.holds(path)]
        strange += [path for path in record.folders if not (places.holds(path) or places.are_below(path))]
        if strange:
            raise SetupError(f"{places.record} names {strange[0]}, which is no place of this installation")
    return record


def is_regular(path: Path) -> bool:
    """Whether the path is a regular file, not a link to one."""
    return path.is_file() and not path.is_symlink()


def digest(data: bytes) -> str:
    """The SHA-256 of a content, in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()
