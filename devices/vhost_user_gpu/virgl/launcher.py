"""Launcher: starts a spawner before the sandbox, and has it start renderers later on."""

import asyncio
import logging
import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from typing import NamedTuple

from vhost_user_gpu.virgl import packets
from vhost_user_gpu.virgl.messages import MOST_PACKET, Capset, Hello
from vhost_user_gpu.virgl.remote import Remote
from vhost_user_gpu.virgl.spawner import STATUS
from vhostd import Fd, SetupError, pause

log = logging.getLogger(__name__)

TICK = 0.01  # seconds between two looks at whether the first renderer is there
TICKS = 3000
LINES = 4096  # bytes of what renderers print that are read at a time
LINES_PAUSE = 1.0  # seconds until more of it is read
# A renderer may write no files. What it compiles is the guest's own.
ENVIRONMENT = {"MESA_SHADER_CACHE_DISABLE": "true", "MESA_GLSL_CACHE_DISABLE": "true"}


class Abilities(NamedTuple):
    """What renderers can do."""

    capsets: dict[int, tuple[int, bytes]]  # by their numbers: the latest version, and the content
    has_context_init: bool
    renderer: str  # what GL says of itself
    version: str


class Launcher:
    """Starts renderers, one at a time.

    The first one is started at once, and says what all can do: `abilities`. SetupError if there is none.
    """

    def __init__(self, node: str | None, memory: int, *, sandbox: bool) -> None:
        """Renders on this node, or where EGL finds something; a guest's resources may take `memory` bytes."""
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lines, printed = (Fd(fd) for fd in os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK))
        self._loop: asyncio.AbstractEventLoop | None = None
        arguments = [f"--memory={memory}"]
        arguments += [] if node is None else [f"--node={node}"]
        arguments += [] if sandbox else ["--sandbox=none"]
        option = "--virgl" if node is None else f"--render-node={node}"
        self._first: socket.socket | None = None
        try:
            with theirs, printed:
                _start_spawner(theirs, printed, arguments)
            self._first = self._connect()
            self.abilities = _abilities(_hello(self._first))
        except SetupError as error:
            self.close()
            raise SetupError(f"{option}: {error}") from None

    def start(self, lost: Callable[[str], None]) -> Remote:
        """A new renderer. The one before ends, if it has not yet. `lost` is told why this one has."""
        first, self._first = self._first, None
        if first is not None:
            return Remote(first, lost, greeted=True)
        return Remote(self._connect(), lost)

    def end(self) -> None:
        """Ends the renderer that runs, if there is one, whatever it is at."""
        self._tell(b"-", ())

    def listen(self) -> None:
        """Logs from now on how renderers end, and what they print; the event loop runs."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(self._control, self._hear_end)
            self._loop.add_reader(self._lines.fileno(), self._hear_lines)

    def close(self) -> None:
        """Ends the spawner, and with it the renderer."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._control)
            self._loop.remove_reader(self._lines.fileno())
        if self._first is not None:
            self._first.close()
        self._control.close()
        self._lines.close()

    def _connect(self) -> socket.socket:
        """The socket of a new renderer; it is closed at the other end if there can be none."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._tell(b"+", (theirs.fileno(),))
        return ours

    def _tell(self, what: bytes, fds: tuple[int, ...]) -> None:
        try:
            packets.send(self._control, what, fds, socket.MSG_DONTWAIT)
        except OSError as error:
            log.error("the renderers' spawner: %s", error.strerror)

    def _hear_end(self) -> None:
        if not (data := _received(self._control.fileno(), STATUS.size)):
            if self._loop is not None:
                self._loop.remove_reader(self._control)
            log.error("the renderers' spawner has ended; there is no 3D any more")
            return
        (status,) = STATUS.unpack(data)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) != signal.SIGKILL:
            log.error("the renderer was ended by %s", signal.Signals(os.WTERMSIG(status)).name)
        elif os.WIFEXITED(status) and os.WEXITSTATUS(status):
            log.error("the renderer has ended with status %d", os.WEXITSTATUS(status))

    def _hear_lines(self) -> None:
        """Logs what GL and its library print. A guest can cause any amount of that, so most may be lost."""
        loop, fd = self._loop, self._lines.fileno()
        if loop is None:
            return
        loop.remove_reader(fd)
        data = _received(fd, LINES)
        for line in data.decode(errors="replace").splitlines():
            log.info("renderer: %s", line)
        if data:
            loop.call_later(LINES_PAUSE, self._hear_more)

    def _hear_more(self) -> None:
        if self._loop is not None and self._lines:
            self._loop.add_reader(self._lines.fileno(), self._hear_lines)


def _received(fd: int, most: int) -> bytes:
    """What has come; nothing if the other side is gone."""
    try:
        return os.read(fd, most)
    except OSError:
        return b""


def _start_spawner(control: socket.socket, printed: Fd, arguments: list[str]) -> None:
    """Starts the spawner with three fds: these two, and nothing to read."""
    module = ["-m", "vhost_user_gpu.virgl.spawner", str(control.fileno())]
    os.set_inheritable(control.fileno(), True)
    try:
        os.posix_spawn(
            sys.executable,
            [sys.executable, "-P", *module, *arguments],
            {**os.environ, **ENVIRONMENT, "PYTHONPATH": os.pathsep.join(sys.path)},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, printed.fileno(), 1),
                (os.POSIX_SPAWN_DUP2, printed.fileno(), 2),
            ],
            setsid=True,  # a terminal's signals are for this program alone
            setsigmask=(),
            setsigdef=(signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2),
        )
    except OSError as error:
        raise SetupError(f"{sys.executable}: {error.strerror}") from None


def _hello(sock: socket.socket) -> bytes:
    """The first packet of the first renderer; raises SetupError if it says that there can be none."""
    ready = select.poll()
    ready.register(sock, select.POLLIN)
    for _ in range(TICKS):
        if ready.poll(0):
            break
        pause(TICK)
    else:
        raise SetupError("the renderer does not start")
    data = sock.recv(MOST_PACKET)
    if not data:
        raise SetupError("the renderer has ended at its start")
    if not Hello.unpack(data[: Hello.SIZE]).ready:
        raise SetupError(data[Hello.SIZE :].decode(errors="replace"))
    return data


def _abilities(hello: bytes) -> Abilities:
    head = Hello.unpack(hello[: Hello.SIZE])
    capsets, at = {}, Hello.SIZE
    for _ in range(head.capsets):
        capset = Capset.unpack(hello[at : at + Capset.SIZE])
        at += Capset.SIZE
        capsets[capset.number] = (capset.version, hello[at : at + capset.size])
        at += capset.size
    names = (name.rstrip(b"\0").decode(errors="replace") for name in (head.renderer, head.version))
    return Abilities(capsets, bool(head.features & Hello.CONTEXT_INIT), *names)
