"""New fds for those that were passed when a trace was recorded."""

import os
import socket

from vhostd.trace.passed import PassedFd
from vhostd.wire.fds import Fd, close_all


class StandIns:
    """Makes an fd of its kind for each recorded one; the same for the same one. Owns them until `close`."""

    def __init__(self) -> None:
        self._made: dict[str, Fd] = {}
        self._kept: list[Fd] = []  # the other ends of pipes and sockets

    def of(self, passed: PassedFd) -> Fd:
        """An fd that stands for a recorded one; the caller owns it."""
        if passed.identity is None:
            return self._make(passed)
        if passed.identity not in self._made:
            self._made[passed.identity] = self._make(passed)
        return Fd(os.dup(self._made[passed.identity].fileno()))

    def learn(self, passed: PassedFd, fd: Fd) -> None:
        """An fd of the back-end's stands for a recorded one from now on."""
        if passed.identity is None:
            fd.close()
            return
        if old := self._made.pop(passed.identity, None):
            old.close()
        self._made[passed.identity] = fd

    def close(self) -> None:
        """Closes all."""
        close_all((*self._made.values(), *self._kept))

    def _make(self, passed: PassedFd) -> Fd:
        match passed.kind:
            case "eventfd":
                return Fd(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
            case "socket":
                ours, theirs = socket.socketpair()
                self._kept.append(Fd(ours.detach()))
                return Fd(theirs.detach())
            case "read pipe":  # with nothing in it
                reading, writing = map(Fd, os.pipe())
                writing.close()
                return reading
            case "write pipe":
                reading, writing = map(Fd, os.pipe())
                self._kept.append(reading)
                return writing
            case _ if passed.size is not None:
                fd = Fd(os.memfd_create("replayed", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
                os.ftruncate(fd.fileno(), passed.size)
                return fd
            case _:
                return Fd(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
