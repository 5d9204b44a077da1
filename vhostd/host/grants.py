"""What a program keeps when it gives up the rest: the sandbox forbids all else (sandbox/)."""

from collections.abc import Iterable
from itertools import chain
from typing import NamedTuple, Protocol, Self

from vhostd.host.ioctls import Ioctl
from vhostd.host.removal import Removal


class FixedName(Protocol):
    """What has a name for the kernel that nobody can change any more: a Removal, or a Destination."""

    fixed: bytes

    def take_name_from(self, address: int) -> None:
        """From now on the kernel is to read the name there (sandbox/names.py)."""


class Grants(NamedTuple):
    """Needs that are left once everything is open.

    A folder is named, not its files: they come and go, and a rule stays with the file that it was made for.
    All that is below it is granted as well. System calls are named as in their manual pages; serving any
    device takes some, which every program has (sandbox/seccomp.py).
    """

    written: tuple[str, ...] = ()  # folders in which files are made, replaced and removed
    removed: tuple[Removal, ...] = ()  # files that are removed, such as a socket's at the end
    connected: tuple[FixedName, ...] = ()  # unix sockets that are connected to: each a Destination
    ioctls: tuple[Ioctl, ...] = ()
    read: tuple[str, ...] = ()  # folders whose files are read
    devices: tuple[str, ...] = ()  # folders whose device nodes are opened, and asked by ioctls
    system_calls: tuple[str, ...] = ()  # their names; those of other architectures have no effect
    userfaultfds: tuple[int, ...] = ()  # with these flags
    # Sockets that are made: family and type, such as AF_UNIX, SOCK_SEQPACKET.
    sockets: tuple[tuple[int, int], ...] = ()
    code: tuple[str, ...] = ()  # who makes memory executable, such as a compiler: for a helper alone

    @classmethod
    def together(cls, parts: Iterable[Self]) -> Self:
        """All that the parts need."""
        return cls(*(tuple(chain.from_iterable(needs)) for needs in zip(*parts, strict=True)))
