"""What a program keeps when it gives up the rest: the sandbox forbids all else (sandbox/)."""

from collections.abc import Iterable
from itertools import chain
from typing import NamedTuple, Self

from vhostd.host.destination import Destination
from vhostd.host.ioctls import Ioctl
from vhostd.host.removal import Removal


class Grants(NamedTuple):
    """Needs that are left once everything is open.

    A folder is named, not its files: they come and go, and a rule stays with the file that it was made for.
    All that is below it is granted as well. System calls are named as in their manual pages; serving any
    device takes some, which every program has (sandbox/seccomp.py).
    """

    written: tuple[str, ...] = ()  # folders in which files are made, replaced and removed
    removed: tuple[Removal, ...] = ()  # files that are removed, such as a socket's at the end
    connected: tuple[Destination, ...] = ()  # unix sockets that are connected to
    ioctls: tuple[Ioctl, ...] = ()
    read: tuple[str, ...] = ()  # folders whose files are read
    devices: tuple[str, ...] = ()  # folders whose device nodes are opened, and asked by ioctls
    system_calls: tuple[str, ...] = ()  # their names; those of other architectures have no effect
    userfaultfds: tuple[int, ...] = ()  # with these flags
    sockets: tuple[
        tuple[int, int], ...
    ] = ()  # that are made: family and type, such as AF_UNIX, SOCK_SEQPACKET
    code: tuple[str, ...] = ()  # who makes memory executable: a compiler, libraries that are loaded later

    @classmethod
    def together(cls, parts: Iterable[Self]) -> Self:
        """All that the parts need."""
        return cls(*(tuple(chain.from_iterable(needs)) for needs in zip(*parts, strict=True)))
