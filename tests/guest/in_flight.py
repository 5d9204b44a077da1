"""Stops a program while it has requests of its guest in flight, so that it can be killed just then."""

import os
import re
import signal
import subprocess
from pathlib import Path

QUEUE_ALIGNMENT = 64  # of each queue's region in the inflight area (vhost-user, "Inflight I/O tracking")
DESC_NUM = slice(10, 12)  # in the region's head
SPLIT, PACKED = 16, 32  # bytes of the head, and of what each descriptor has; its first byte says "in flight"
MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) .*/memfd:inflight", re.MULTILINE)


def stops_in_flight(process: subprocess.Popen[bytes], record: int = SPLIT) -> bool:
    """Stops a child, unless it has nothing in flight: then it goes on."""
    process.send_signal(signal.SIGSTOP)
    os.waitpid(process.pid, os.WUNTRACED)
    if _has_requests(_inflight_area(process.pid), record):
        return True
    process.send_signal(signal.SIGCONT)
    return False


def _inflight_area(pid: int) -> bytes:
    """The memory that outlives the program, in which it records what it has begun."""
    found = MAPPING.search(Path(f"/proc/{pid}/maps").read_text())
    if found is None:
        return b""
    start, end = (int(each, 16) for each in found.groups())
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        return os.pread(memory.fileno(), end - start, start)


def _has_requests(area: bytes, record: int) -> bool:
    while descriptors := int.from_bytes(area[DESC_NUM], "little"):
        size = record * (1 + descriptors)
        if any(area[record:size:record]):
            return True
        area = area[-(-size // QUEUE_ALIGNMENT) * QUEUE_ALIGNMENT :]
    return False
