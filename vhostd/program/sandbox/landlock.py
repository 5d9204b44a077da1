"""Landlock: files to open, make and remove from now on; no TCP; no signals to others (landlock(7))."""

import ctypes
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import suppress

from vhostd.host.grants import Grants

# Linux, include/uapi/linux/landlock.h; the numbers of the system calls are those of every architecture.
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
CREATE_RULESET_VERSION = 1
RULE_PATH_BENEATH = 1
WRITE_FILE, READ_FILE, READ_DIR, REMOVE_FILE = (1 << bit for bit in (1, 2, 3, 5))
MAKE_REG, TRUNCATE, IOCTL_DEV = (1 << bit for bit in (8, 14, 15))
FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 5: 16}  # how many each version of the interface has, from then on
BIND_TCP, CONNECT_TCP = 1, 2  # since version 4
SCOPE_ABSTRACT_SOCKETS, SCOPE_SIGNALS = 1, 2  # since version 6

_libc = ctypes.CDLL(None, use_errno=True)


class _Ruleset(ctypes.Structure):
    """struct landlock_ruleset_attr"""

    _fields_ = (("files", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scope", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    """struct landlock_path_beneath_attr"""

    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def interface() -> int:
    """The version of Landlock that the kernel has; raises OSError if it has none."""
    return _call(CREATE_RULESET, None, 0, CREATE_RULESET_VERSION)


def restrict(grants: Grants, version: int) -> None:
    """Limits this thread, and those to come, to reading modules, and to these folders; raises OSError."""
    files = (1 << max(count for since, count in FILE_RIGHTS.items() if since <= version)) - 1
    net = BIND_TCP | CONNECT_TCP if version >= 4 else 0
    ruleset = _Ruleset(files, net, _scopes() if version >= 6 else 0)
    fd = _call(CREATE_RULESET, ctypes.byref(ruleset), ctypes.sizeof(ruleset), 0)
    try:
        for folder in {*module_folders(), *grants.read}:
            _allow(fd, folder, READ_FILE | READ_DIR)
        for removal in grants.removed:
            _allow(fd, removal.folder.path, REMOVE_FILE)
        for folder in grants.written:
            _allow(fd, folder, files & (WRITE_FILE | TRUNCATE | MAKE_REG | REMOVE_FILE))
        for folder in grants.devices:
            _allow(fd, folder, files & (READ_FILE | READ_DIR | WRITE_FILE | IOCTL_DEV))
        _call(RESTRICT_SELF, fd, 0)
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
            rule = _PathBeneath(rights, fd)
            _call(ADD_RULE, ruleset, RULE_PATH_BENEATH, ctypes.byref(rule), 0)
        finally:
            os.close(fd)


def _call(number: int, *arguments: object) -> int:
    result: int = _libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
