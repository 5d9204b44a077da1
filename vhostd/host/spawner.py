"""Starts helpers, and ends them, for a program that may do neither any more once it is in its sandbox.

    python -m vhostd.host.spawner CONTROL MODULE [ARGUMENTS]

CONTROL is the number of a connected socket's fd. Each packet there ends the helper that runs. If an fd
comes with it, a new one is started, `python -m MODULE FD ARGUMENTS`, which gets it. Whenever a helper ends, a
packet says how (waitpid(2)). Nothing that a guest has written ever comes here. When the other end is closed,
the helper and the spawner end.
"""

import os
import select
import signal
import socket
import struct
import sys
from contextlib import suppress

from vhostd.wire.packets import receive_packet

MOST = 16  # bytes of a packet
MOST_FDS = 1 << 20  # more than any process may have open
STATUS = struct.Struct("=i")  # what waitpid gives


class Spawner:
    """One helper at a time, on request."""

    def __init__(self, control: socket.socket, module: str, arguments: list[str]) -> None:
        self._control = control
        self._module = module
        self._arguments = arguments
        self._pid = self._pidfd = -1

    def run(self) -> None:
        """Serves until the other side closes the socket."""
        while True:
            poll = select.poll()
            poll.register(self._control, select.POLLIN)
            if self._pidfd >= 0:
                poll.register(self._pidfd, select.POLLIN)
            ready = {fd for fd, _ in poll.poll()}
            if self._pidfd in ready:
                self._bury()
            if self._control.fileno() in ready:
                data, fds = receive_packet(self._control, MOST)
                self._end()
                if not data:
                    return
                for fd in fds:
                    self._start(fd)

    def _start(self, fd: int) -> None:
        """Executes a new Python, so that no two helpers have the same layout in memory."""
        os.set_inheritable(fd, True)
        command = [sys.executable, "-P", "-m", self._module, str(fd), *self._arguments]
        self._pid = os.posix_spawn(sys.executable, command, os.environ)
        self._pidfd = os.pidfd_open(self._pid)
        os.close(fd)

    def _end(self) -> None:
        if self._pid >= 0:
            os.kill(self._pid, signal.SIGKILL)
            self._bury()

    def _bury(self) -> None:
        """Says how the helper has ended."""
        _, status = os.waitpid(self._pid, 0)
        os.close(self._pidfd)
        self._pid = self._pidfd = -1
        with suppress(OSError):  # nobody is there to hear it
            self._control.send(STATUS.pack(status), socket.MSG_DONTWAIT)


def main() -> None:
    """Serves at the socket that the command line names."""
    control, module, *arguments = sys.argv[1:]
    fd = int(control)
    os.set_inheritable(fd, False)  # a helper has no business here
    for rest in (range(3, fd), range(fd + 1, MOST_FDS)):  # what the program has been started with
        os.closerange(rest.start, rest.stop)
    Spawner(socket.socket(fileno=fd), module, arguments).run()


if __name__ == "__main__":
    main()
