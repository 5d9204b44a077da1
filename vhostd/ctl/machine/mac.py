"""The address of a network card: the same each time, and another one in each machine."""

import os
from collections.abc import Iterable
from hashlib import sha256

PREFIX = "52:54:00"  # of QEMU and libvirt
SIZE = 3  # bytes that are ours to choose


def mac_of(identity: Iterable[str]) -> str:
    """The address of a card of this host that leads where `identity` says."""
    digest = sha256("\0".join((os.uname().nodename, *identity)).encode(errors="surrogateescape"))
    return f"{PREFIX}:{digest.digest()[:SIZE].hex(':')}"
