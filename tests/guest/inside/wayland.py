"""A client of a Wayland compositor that fills its window with known pictures, without any library.

python -m tests.guest.inside.wayland SEED...     SIGUSR1 shows the next seed, and after the last ends it
"""

import mmap
import os
import signal
import socket
import struct
import sys
from array import array
from collections.abc import Callable

from tests.guest.pattern import pattern

HEAD = struct.Struct("=II")  # an object; the message's number, and its size in the upper half
PIXEL = 4
DISPLAY = 1  # the object that is there at first
COMPOSITOR, SHM, BASE = b"wl_compositor", b"wl_shm", b"xdg_wm_base"
# Requests, by their objects, and the events of interest, all of which have the number 0 (wayland.xml,
# xdg-shell.xml).
GET_REGISTRY, BIND, CREATE_SURFACE, CREATE_POOL, CREATE_BUFFER = 1, 0, 0, 0, 0
ATTACH, DAMAGE, COMMIT = 1, 2, 6
GET_XDG_SURFACE, PONG, GET_TOPLEVEL, ACK_CONFIGURE = 2, 3, 1, 4
XRGB8888 = 1
NEXT = {signal.SIGUSR1}


class Window:
    """A window of the size that the compositor wants."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(os.path.join(os.environ["XDG_RUNTIME_DIR"], os.environ["WAYLAND_DISPLAY"]))
        self._last = DISPLAY  # object that was made
        self._globals = dict.fromkeys((COMPOSITOR, SHM, BASE), 0)
        self._hears: dict[int, Callable[[bytes], None]] = {DISPLAY: self._fail}
        self._wanted = self.size = (0, 0)
        self._is_configured = False
        self._registry = self._make(DISPLAY, GET_REGISTRY)
        self._hears[self._registry] = self._bind
        while not all(self._globals.values()):
            self._hear()
        self._hears[self._globals[BASE]] = self._pong
        self._surface = self._make(self._globals[COMPOSITOR], CREATE_SURFACE)
        self._shell = self._make(self._globals[BASE], GET_XDG_SURFACE, self._surface)
        self._hears[self._shell] = self._configure
        self._hears[self._make(self._shell, GET_TOPLEVEL)] = self._resize
        self._ask(self._surface, COMMIT)
        while not self._is_configured:
            self._hear()
        if not all(self.size):  # a compositor may wait for something to show before it says more
            self._show(1, 1, bytes(PIXEL))
        while not all(self.size):
            self._hear()

    def paint(self, pixels: bytes) -> None:
        """Shows a picture of the window's size, BGRX."""
        self._show(*self.size, pixels)

    def _show(self, width: int, height: int, pixels: bytes) -> None:
        fd = os.memfd_create("picture")
        os.truncate(fd, len(pixels))
        with mmap.mmap(fd, len(pixels)) as memory:
            memory[:] = pixels
        pool = self._make(self._globals[SHM], CREATE_POOL, len(pixels), fd=fd)
        os.close(fd)
        picture = self._make(pool, CREATE_BUFFER, 0, width, height, PIXEL * width, XRGB8888)
        self._ask(self._surface, ATTACH, picture, 0, 0)
        self._ask(self._surface, DAMAGE, 0, 0, width, height)
        self._ask(self._surface, COMMIT)

    def _make(self, number: int, request: int, *words: int, fd: int = -1) -> int:
        """Makes an object by a request of another."""
        self._last += 1
        self._ask(number, request, self._last, *words, fd=fd)
        return self._last

    def _ask(self, number: int, request: int, *words: int, fd: int = -1) -> None:
        self._send(number, request, struct.pack(f"={len(words)}I", *words), fd)

    def _send(self, number: int, request: int, body: bytes, fd: int = -1) -> None:
        message = HEAD.pack(number, request | HEAD.size + len(body) << 16) + body
        fds = [] if fd < 0 else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [fd]))]
        self._socket.sendmsg([message], fds)

    def _hear(self) -> None:
        """Takes one event."""
        number, what = HEAD.unpack(self._receive(HEAD.size))
        body = self._receive((what >> 16) - HEAD.size)
        if number in self._hears and not what & 0xFFFF:
            self._hears[number](body)

    def _receive(self, size: int) -> bytes:
        return self._socket.recv(size, socket.MSG_WAITALL) if size else b""

    def _fail(self, error: bytes) -> None:
        raise RuntimeError(f"the compositor says {error!r}")

    def _bind(self, announced: bytes) -> None:
        """Takes an object of the compositor's that is wanted, in its first version."""
        (size,) = struct.unpack_from("=I", announced, 4)
        interface = announced[8 : 7 + size]
        if self._globals.get(interface) == 0:
            self._last += 1
            self._globals[interface] = self._last
            self._send(self._registry, BIND, announced[:-4] + struct.pack("=II", 1, self._last))

    def _pong(self, serial: bytes) -> None:
        self._send(self._globals[BASE], PONG, serial)

    def _resize(self, wanted: bytes) -> None:
        self._wanted = struct.unpack_from("=II", wanted)

    def _configure(self, serial: bytes) -> None:
        self._send(self._shell, ACK_CONFIGURE, serial)
        self.size, self._is_configured = self._wanted, True


def main(*seeds: str) -> None:
    """Shows pictures, one after the other."""
    signal.pthread_sigmask(signal.SIG_BLOCK, NEXT)
    window = Window()
    for seed in seeds:
        window.paint(pattern(*window.size, int(seed), "BGRX"))
        print(f"painted {seed} by {os.getpid()}", flush=True)
        signal.sigwait(NEXT)


if __name__ == "__main__":
    main(*sys.argv[1:])
