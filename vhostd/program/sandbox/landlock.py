"""Landlock: files to open, make and remove from now on; no TCP; no signals to others (landlock(7))."""

import os
import stat
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress

from vhostd.host.grants import Grants
from vhostd.host.syscall import syscall

# Linux, include/uapi/linux/landlock.h; the numbers of the system calls are those of every architecture.
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
CREATE_RULESET_VERSION = 1
RULE_PATH_BENEATH = 1
WRITE_FILE, READ_FILE, READ_DIR, REMOVE_FILE = (1 << bit for bit in (1, 2, 3, 5))
MAKE_REG, TRUNCATE, IOCTL_DEV = (1 << bit for bit in (8, 14, 15))
FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 5: 16}  # how many each version of the interface has, from then on
BIND_TCP, CONNECT_TCP = 1, 2  # since version 4
SCOPE_ABSTRACT_SOCKETS, SCOPE_SIGNALS = 1, 2  # since version 6

RULESET = struct.Struct("=QQQ")  # struct landlock_ruleset_attr: rights to files, to the network, scopes
PATH_BENEATH = struct.Struct("=Qi")  # struct landlock_path_beneath_attr: rights, an fd


def interface() -> int:
    """The version of Landlock that the kernel has; raises OSError if it has none."""
    return syscall(CREATE_RULESET, 0, 0, CREATE_RULESET_VERSION)


def restrict(grants: Grants, version: int) -> None:
    """Limits this thread, and those to come, to reading modules, and to these folders; raises OSError."""
    files = (1 << max(count for since, count in FILE_RIGHTS.items() if since <= version)) - 1
    net = BIND_TCP | CONNECT_TCP if version >= 4 else 0
    ruleset = RULESET.pack(files, net, _scopes() if version >= 6 else 0)
    fd = syscall(CREATE_RULESET, ruleset, len(ruleset), 0)
    try:
        for folder in {*module_folders(), *grants.read}:
            _allow(fd, folder, READ_FILE | READ_DIR)
        for removal in grants.removed:
            _allow(fd, removal.folder.path, REMOVE_FILE)
        for folder in grants.written:
            _allow(fd, folder, files & (WRITE_FILE | TRUNCATE | MAKE_REG | REMOVE_FILE))
        for folder in grants.devices:
            _allow(fd, folder, files & (READ_FILE | READ_DIR | WRITE_FILE | IOCTL_DEV))
        syscall(RESTRICT_SELF, fd, 0)
    finally:
        os.close(fd)


def _scopes() -> int:
    """A service manager may listen at an abstract socket, mostly outside of a container."""
    notified = os.environ.get("NOTIFY_SOCKET", "").startswith("@")
    return SCOPE_SIGNALS if notified else SCOPE_SIGNALS | SCOPE_ABSTRACT_SOCKETS


def module_folders() -> Iterator[str]:
    """Where modules were imported from, and more may be later, and where tracebacks find their lines."""
    for name, module in sys.modules.items():
        if "." not in name and name != "__main__" and (file := getattr(module, "__file__", None)):
            folder = os.path.dirname(file)
            yield os.path.dirname(folder) if hasattr(module, "__path__") else folder


def _allow(ruleset: int, path: str, rights: int) -> None:
    """Adds a rule; one for a place that does not exist would allow nothing."""
    with suppress(FileNotFoundError):
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            if not stat.S_ISDIR(os.fstat(fd).st_mode):
                rights &= ~READ_DIR
            syscall(ADD_RULE, ruleset, RULE_PATH_BENEATH, PATH_BENEATH.pack(rights, fd), 0)
        finally:
            os.close(fd)
