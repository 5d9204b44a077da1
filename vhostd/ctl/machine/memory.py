"""The guest's memory: all of it must be shared, since the programs work in it."""

import re

from vhostd.ctl.machine.words import Words, properties
from vhostd.errors import UsageError

DEFAULT = 128 << 20  # bytes: QEMU's own default
ALIGNMENT = 8192  # of a machine's memory, to which QEMU rounds up
MEGABYTE = 1 << 20
ID = "vhostctl-memory"
SHARED_BY_DEFAULT = ("memory-backend-memfd", "memory-backend-shm")
MEBI = 20  # QEMU's unit for a size without one, as a power of 2
UNITS = {"B": 0, "K": 10, "M": 20, "G": 30, "T": 40, "P": 50, "E": 60}
SIZE = re.compile(r"(\d+(?:\.\d+)?)([BKMGTPE]?)(?:iB)?", re.IGNORECASE)


def memory_arguments(words: Words) -> list[str]:
    """QEMU's arguments for shared memory; none if the user's own is shared. Raises UsageError otherwise."""
    if words.has("mem-path"):
        raise UsageError("-mem-path does not go with shared memory: use -object memory-backend-file,share=on")
    if words.property("machine", "memory") or words.property("machine", "memory.size"):
        raise UsageError("-machine memory=: say with -m how much memory the guest has")
    own = [each for each in map(properties_of_object, words.values("object")) if is_memory(each)]
    for each in own:
        if not _is_shared(each):
            named = f"-object {each['qom-type']},id={each.get('id', '')}"
            raise UsageError(f"{named}: the programs do not see this memory: add share=on")
    if _numa_names_memory(words) or words.property("machine", "memory-backend", "type"):
        return []
    size = memory_size(words)
    shown = size if size % MEGABYTE else f"{size // MEGABYTE}M"
    backend = f"memory-backend-memfd,id={ID},size={shown},share=on"
    return ["-object", backend, "-machine", f"memory-backend={ID}"]


def properties_of_object(value: str) -> dict[str, str]:
    """An object's properties, with its type as `qom-type`."""
    return dict(properties(value, "qom-type"))


def is_memory(properties: dict[str, str]) -> bool:
    """Whether an object is memory of a guest."""
    return properties.get("qom-type", "").startswith("memory-backend-")


def _is_shared(memory: dict[str, str]) -> bool:
    default = "on" if memory["qom-type"] in SHARED_BY_DEFAULT else "off"
    return memory.get("share", default) in ("on", "true", "yes", "y")


def _numa_names_memory(words: Words) -> bool:
    nodes = [node for node in map(_node, words.values("numa")) if node.get("type") == "node"]
    if nodes and not any("memdev" in node for node in nodes):
        raise UsageError("-numa: name each node's memory by memdev=ID: an -object memory-backend-memfd,id=ID")
    return bool(nodes)


def _node(value: str) -> dict[str, str]:
    return dict(properties(value, "type"))


def memory_size(words: Words) -> int:
    """How many bytes the guest has at its start; raises UsageError."""
    text = words.property("m", "size", "size")
    if text is None:
        return DEFAULT
    if not (found := SIZE.fullmatch(text)):
        raise UsageError(f"-m {text}: not a size such as 2G or 512M")
    size = int(float(found[1]) * (1 << (UNITS[found[2].upper()] if found[2] else MEBI)))
    if not size:
        raise UsageError(f"-m {text}: a guest needs memory")
    return -(-size // ALIGNMENT) * ALIGNMENT
