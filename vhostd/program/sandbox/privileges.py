"""Limits, capabilities, and whether exec may bring new ones (prctl(2), capset(2), setrlimit(2))."""

import resource
import struct
from contextlib import suppress

from vhostd.host.syscall import CAPGET, CAPSET, PRCTL, syscall

# Linux, include/uapi/linux/prctl.h and capability.h
PR_SET_NO_NEW_PRIVS = 38
CAPABILITY_VERSION_3 = 0x20080522
HEADER = struct.Struct("=Ii")  # struct __user_cap_header_struct: version, process
CAPABILITY_BYTES = 24  # two structs of three words: effective, permitted, inheritable

MAX_FILES = 4096  # two for each of a guest's 509 pieces of memory, three for each of 256 rings, and more


def limit() -> None:
    """Gives up what exec could bring, and core dumps, which would hold the guest's memory."""
    with suppress(OSError, ValueError):  # a service manager that keeps the limits to itself has set them
        _allow_files(MAX_FILES)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    syscall(PRCTL, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def drop() -> None:
    """Gives up all capabilities: root is then the owner of what is root's, and no more."""
    header = bytearray(HEADER.pack(CAPABILITY_VERSION_3, 0))
    held = bytearray(CAPABILITY_BYTES)
    syscall(CAPGET, header, held)
    if any(held):  # whoever has none may not even be let call it, as by systemd's SystemCallFilter
        syscall(CAPSET, header, bytes(CAPABILITY_BYTES))


def _allow_files(wanted: int) -> None:
    """Raises the limit of open files to what is wanted, as far as it goes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
