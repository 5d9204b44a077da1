"""libvirt's discovery of back-end programs: what libvirt makes of the files in the folders that it reads.

Each folder is more specific than the folders before it. Of several files with one name, the most specific
counts; an empty one hides the others. libvirt reads the files that are left, in the order of their names and
whatever their suffix. A file that libvirt does not understand stops the discovery. Then no domain starts that
needs any program from these folders.

Nothing here reads the system: a `Folder` holds its files.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from vhostd.conformance.schema import Kind, faults
from vhostd.ctl.libvirt.json_text import (
    JSON_C,
    LIMIT,
    TOLERANT,
    Dialect,
    NotJson,
    read,
    read_as_libvirt,
    word,
)

TYPES = (  # the types that libvirt knows
    *("9p", "balloon", "block", "caif", "console", "crypto", "fs", "gpu", "input", "net", "rng", "rpmsg"),
    *("rproc-serial", "scsi", "vsock"),
)
# The types whose programs libvirt starts, and the devices' names in domains.
LAUNCHED = {"gpu": "a vhost-user video device", "fs": "virtiofs"}


class State(StrEnum):
    """What becomes of a file."""

    BREAKS = "breaks"  # libvirt stops here
    CANDIDATE = "candidate"  # libvirt asks the program for its capabilities before it decides
    USED = "used"  # the first of its type that can be used
    SPARE = "spare"  # another comes first, unless a domain asks for a feature that it lacks
    FAILS = "fails"  # libvirt chooses it, and then the domain's start fails
    SKIPPED = "skipped"  # libvirt tries the next one
    UNUSED = "unused"  # of a type that libvirt starts no programs for
    MASK = "mask"
    MASKED = "masked"
    REPLACED = "replaced"
    IGNORED = "ignored"  # not looked at


@dataclass(frozen=True)
class File:
    """A name in a folder, and its file. The last three members say why there is no content."""

    path: Path
    size: int = 0
    content: bytes = b""
    ignored: str = ""
    unreachable: str = ""
    unreadable: str = ""


@dataclass(frozen=True)
class Folder:
    """A folder that libvirt reads. A missing folder has no files and no fault."""

    path: Path
    files: tuple[File, ...] = ()
    fault: str = ""


@dataclass(frozen=True)
class Entry:
    """A file, or a folder that cannot be read, and libvirt's use of it. `binary` is None if it names none.

    The `notes` are about what this libvirt accepts and others may not.
    """

    path: Path
    state: State
    reason: str = ""
    type: str = ""
    binary: str | None = None
    notes: tuple[str, ...] = ()


def discover(folders: Sequence[Folder], dialect: Dialect = TOLERANT) -> list[Entry]:
    """libvirt's use of every file, in libvirt's order; files with the same name from general to specific.

    `dialect` is libvirt's dialect of JSON.
    """
    found = [file for folder in folders for file in folder.files]
    counting = {file.path.name: file for file in found if not file.ignored and not file.unreachable}
    entries = [_entry(file, counting, dialect) for file in found]
    # Sorted by bytes, as C compares names. The sort keeps the order of folders.
    entries.sort(key=lambda entry: os.fsencode(entry.path.name))
    broken = [Entry(each.path, State.BREAKS, each.fault) for each in folders if each.fault]
    return broken + entries


def is_broken(entries: Iterable[Entry]) -> bool:
    """Whether a file stops the discovery."""
    return any(entry.state == State.BREAKS for entry in entries)


def _entry(file: File, counting: dict[str, File], dialect: Dialect) -> Entry:
    if file.ignored:
        return Entry(file.path, State.IGNORED, file.ignored)
    if file.unreachable:  # even if another file replaces it
        return Entry(file.path, State.BREAKS, f"it leads nowhere: {file.unreachable}")
    winner = counting[file.path.name]
    if winner is not file:
        state = State.REPLACED if winner.size else State.MASKED
        return Entry(file.path, state, f"by {winner.path}")
    if not file.size:
        return Entry(file.path, State.MASK, "it is empty, and hides what has its name in folders before it")
    return _described(file, dialect)


def _described(file: File, dialect: Dialect) -> Entry:
    if file.unreadable:
        return Entry(file.path, State.BREAKS, f"it cannot be read: {file.unreadable}")
    if file.size > LIMIT:
        return Entry(file.path, State.BREAKS, "it is larger than 1 MiB")
    try:
        document = read_as_libvirt(file.content, dialect)
    except NotJson as error:
        return Entry(file.path, State.BREAKS, f"it is not JSON: {error}")
    members = document if isinstance(document, dict) else {}
    kind, binary = word(members.get("type")), word(members.get("binary"))
    if kind not in TYPES:
        return Entry(file.path, State.BREAKS, _type_fault(members, kind))
    state, reason = State.CANDIDATE, ""
    if kind not in LAUNCHED:
        state, reason = State.UNUSED, "libvirt starts no programs of this type"
    return Entry(file.path, state, reason, kind, binary, tuple(_notes(file)))


def _notes(file: File) -> Iterator[str]:
    if not file.path.name.endswith(".json"):
        yield "libvirt reads it whatever its name ends in: remove it if it is a copy"
    try:
        document = read(file.content)
    except NotJson as error:
        yield f"other versions of libvirt do not take it for JSON, and break: {error}"
        return
    for other in JSON_C.values():
        try:
            read_as_libvirt(file.content, other)
        except NotJson as error:
            yield f"libvirt does not read it on other hosts: {error}"
            break
    for fault in faults(document, Kind.DESCRIPTION):
        if not fault.tolerable:
            yield f"at {fault.place}: {fault.message}"


def _type_fault(members: dict[str, object], kind: str | None) -> str:
    if "type" not in members:
        return "it has no type"
    if kind is None:
        return "its type is no string"
    return f"its type is {kind!r}, which libvirt does not know"
