"""The front-end's end of a case: a connection, its memory and its rings, which do what an operation says.

Messages are sent in batches, and nobody waits for their replies before `settle`: a message costs microseconds
then, and not a round trip.
"""

import array
import os
import select
import socket
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

from vhostd.errors import BadDescriptor, MemoryLost
from vhostd.frontend.memory import SharedMemory
from vhostd.fuzz.listener import Listener
from vhostd.fuzz.patience import Patience
from vhostd.fuzz.place import DATA, MEMORIES, USER, ring_addr
from vhostd.fuzz.strange import open_fd
from vhostd.fuzz.target import Target
from vhostd.ring.driver import NEXT, SplitDriver
from vhostd.ring.driver_packed import PackedDriver
from vhostd.vhost_user.messages import GET_FEATURES
from vhostd.wire.fds import Fd
from vhostd.wire.framing import HEADER, NEED_REPLY, REPLY, VERSION

BATCH = 1 << 14  # bytes of messages that wait to be sent together
ANSWERS = {1: 8, 3: 408, 10: 0, 11: 1056}  # bytes of a display's answers, by the request


class Rig:
    """Does operations against a back-end, to which `dial` makes a connection that is served.

    `messages` and `ring_operations` count what the back-end has taken: messages that were followed by an
    answer, and descriptors, indices, event wishes and kicks for a ring that it had not declared broken.
    `signals` are what was noticed: kinds of replies, and ends of connections.
    """

    def __init__(self, target: Target, dial: Callable[[], socket.socket]) -> None:
        self._target = target
        self._dial = dial
        self.seconds = 5.0  # for an answer
        self.messages = self.ring_operations = 0
        self.signals: set[tuple[object, ...]] = set()
        self.is_stuck = False  # it has not answered while it should
        self._line: Listener | None = None
        self._channels: dict[str, Listener] = {}
        self._memories: list[SharedMemory] = []
        self._rings: list[_Ring] = []
        self._others: list[Fd] = []  # kept open as long as the connection
        self._outbox = bytearray()
        self._rights: list[Fd] = []
        self._passing: list[Fd] = []
        self._expected = self._answers = 0  # of GET_FEATURES, which comes last in each batch
        self._untaken = self._replies = 0  # messages, and what was heard, since the last batch
        self._is_exact = True
        self._last = 0

    @property
    def is_open(self) -> bool:
        """Whether there is a connection, as far as is known."""
        return self._line is not None and self._line.is_open

    # --- The connection -----------------------------------------------------------------------------------

    def connect(self, rings: int, size: int, *, packed: bool) -> None:
        """A new connection, and a new guest."""
        self.disconnect()
        try:
            self._line = Listener(self._dial(), self._heard)
        except OSError:
            return
        self._memories = [SharedMemory(size, guest_addr=at, user_addr=USER + at) for at, size in MEMORIES]
        self._rings = [_Ring(self._memories[0], index, size, packed=packed) for index in range(rings)]
        self._expected = self._answers = self._untaken = self._replies = 0
        self._is_exact = True

    def disconnect(self) -> None:
        """Closes the connection and lets go of the guest."""
        if self.is_open:
            self.flush()
        self._drop()
        held: list[Any] = [*self._memories, *self._rings, *self._others, *self._channels.values()]
        for each in held if self._line is None else [*held, self._line]:
            each.close()
        self._line, self._memories, self._rings, self._others, self._channels = None, [], [], [], {}

    def stranger(self) -> None:
        """A second connection for a moment."""
        self.flush()
        with suppress(OSError):
            self._target.dial().close()

    # --- Messages -----------------------------------------------------------------------------------------

    def send(self, request: int, flags: int, payload: bytes, kinds: Sequence[str], size: int | None) -> None:
        """Sends a message, soon."""
        if kinds or len(self._outbox) > BATCH:
            self.flush()
            fds = [self._fd(kind) for kind in kinds]
            self._rights = [fd for fd in fds if fd is not None]
        self._outbox += HEADER.pack(request, flags, len(payload) if size is None else size)
        self._outbox += payload
        self._untaken += 1
        self._last = request
        if size is not None and size != len(payload):
            self._is_exact = False
        if request == GET_FEATURES.request:
            self._expected += 1
            self._is_exact &= not (payload or kinds or flags & ~NEED_REPLY != VERSION)

    def flush(self) -> None:
        """Hands all messages to the kernel, and takes what was answered meanwhile."""
        patience = Patience(self.seconds, self._target.pid)
        while self._outbox and self._line is not None and self._line.is_open:
            fds = [fd.fileno() for fd in self._rights if fd]
            try:
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
                sent = self._line.socket.sendmsg([self._outbox], rights, socket.MSG_DONTWAIT)
            except BlockingIOError:
                if not self._wait(patience, select.POLLOUT):
                    break
                continue
            except OSError:
                self._line.read()
                self._line.is_open = False
                break
            del self._outbox[:sent]
            self._rights = []
        self._drop()

    def settle(self) -> None:
        """Waits until the back-end has answered, or ended the connection. Notes which rings it has broken.

        Where nobody can tell which answers are to come, it waits for the end of the connection.
        """
        if self._is_exact:
            self.send(GET_FEATURES.request, VERSION, b"", (), None)
        self.flush()
        if not self._is_exact and self._line is not None and self.is_open:
            with suppress(OSError):
                self._line.socket.shutdown(socket.SHUT_WR)
        patience = Patience(self.seconds, self._target.pid)
        while self.is_open and not (self._is_exact and self._answers >= self._expected):
            if not self._wait(patience):
                break
        if not self.is_open:
            self.signals.add(("closed", self._last))
        self.messages += self._untaken if self.is_open else min(self._untaken, self._replies + 1)
        self._untaken = self._replies = 0
        for ring in self._rings:
            ring.look()

    def tell(self, name: str, data: bytes) -> None:
        """Writes to another socket that the back-end has."""
        self.flush()
        if name in self._channels:
            with suppress(OSError):
                self._channels[name].socket.send(data, socket.MSG_DONTWAIT)

    def _wait(self, patience: Patience, events: int = 0) -> bool:
        """Waits for the back-end to say or take something; False once `patience` is at its end."""
        poll = select.poll()
        listeners = [each for each in (self._line, *self._channels.values()) if each and each.is_open]
        for each in listeners:
            poll.register(each.socket, select.POLLIN | (events if each is self._line else 0))
        if not patience.wait(poll) and patience.is_over:
            self.is_stuck = True
            if self._line is not None:
                self._line.is_open = False
            return False
        for each in listeners:
            each.read()
        return True

    def _heard(self, request: int, flags: int, size: int, payload: bytes) -> None:
        self._answers += request == GET_FEATURES.request
        self._replies += 1
        self.signals.add(("reply", request, flags, size, size == 8 and any(payload)))

    def _drop(self) -> None:
        """Forgets what could not be sent, and closes the fds that were only to be sent."""
        self._outbox.clear()
        self._rights = []
        for fd in self._passing:
            fd.close()
        self._passing = []

    def _fd(self, kind: str) -> Fd | None:
        """An fd by what it is. Those of the guest are its own; a strange one is closed once it is sent."""
        name, number = kind.rstrip("0123456789"), int("0" + kind.lstrip("abcdefghijklmnopqrstuvwxyz -"))
        if name == "memory":
            return self._memories[number % len(self._memories)].fd
        if name in ("kick", "call", "err"):
            return self._rings[number % len(self._rings)].fds[name]
        if name in ("backend", "display"):
            return self._channel(name)
        if name == "own" and self._line is not None:
            fd = Fd(os.dup(self._line.socket.fileno()))
        elif name == "reader":
            ours, theirs = map(Fd, os.pipe2(os.O_CLOEXEC))
            self._others.append(ours)
            fd = theirs
        else:
            fd = open_fd(kind)
        self._passing.append(fd)
        return fd

    def _channel(self, name: str) -> Fd:
        ours, theirs = socket.socketpair()
        if name in self._channels:
            self._channels[name].close()

        def heard(request: int, flags: int, _size: int, _payload: bytes) -> None:
            self.signals.add((name, request, flags))
            if name == "display" and request in ANSWERS:
                answer = bytes(ANSWERS[request])
            elif name == "backend" and (flags & NEED_REPLY or request == 8):
                answer = bytes(8)
            else:
                return
            with suppress(OSError):
                head = HEADER.pack(request, flags & ~NEED_REPLY | REPLY, len(answer))
                ours.send(head + answer, socket.MSG_DONTWAIT)

        self._channels[name] = Listener(ours, heard)
        self._passing.append(Fd(theirs.detach()))
        return self._passing[-1]

    # --- Memory and rings ---------------------------------------------------------------------------------

    def renew(self, index: int) -> None:
        """Lays a ring out again."""
        self._ring(index).renew()

    def descriptor(self, ring: int, *fields: int) -> None:
        """Writes a descriptor: where, address, length, flags, and the next one's index or the id."""
        self._driven(ring, 1).descriptor(*fields)

    def offer(self, ring: int, buffers: Iterable[tuple[int, int, int]]) -> None:
        """Makes a chain available."""
        buffers = list(buffers)
        self._driven(ring, len(buffers) + 1).offer(buffers)

    def head(self, ring: int, head: int) -> None:
        """Makes a chain available by its head."""
        self._driven(ring, 1).head(head)

    def jump(self, ring: int, count: int) -> None:
        """Advances the avail index."""
        self._driven(ring, 1).jump(count)

    def wish(self, ring: int, position: int, flags: int) -> None:
        """Sets the driver's wish for interrupts."""
        self._driven(ring, 1).wish(position, flags)

    def kick(self, ring: int, count: int) -> None:
        """Signals a ring's eventfd."""
        self._driven(ring, 1).kick(count)

    def write(self, addr: int, data: bytes) -> None:
        """Writes into the guest's memory, as far as there is memory."""
        for memory in self._memories:
            if memory.guest_addr <= addr < memory.guest_addr + memory.size:
                end = memory.guest_addr + memory.size - addr
                with suppress(BadDescriptor, MemoryLost):
                    memory.map.write(addr, data[:end])

    def resize(self, memory: int, size: int) -> None:
        """Cuts a memory's file, or makes it longer."""
        self.flush()
        with suppress(OSError):  # a back-end may have sealed it
            os.ftruncate(self._memories[memory % len(self._memories)].fd.fileno(), size)

    def _ring(self, index: int) -> "_Ring":
        return self._rings[index % len(self._rings)]

    def _driven(self, index: int, operations: int) -> "_Ring":
        if self._outbox:
            self.flush()  # what was said before is to come first
        ring = self._ring(index)
        if not ring.is_broken:
            self.ring_operations += operations
        return ring


class _Ring:
    """A ring in the guest's memory, and its eventfds."""

    def __init__(self, memory: SharedMemory, index: int, size: int, *, packed: bool) -> None:
        self._memory = memory
        self._place = ring_addr(index)
        self._size = size
        self._packed = packed
        self.fds = {
            name: Fd(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)) for name in ("kick", "call", "err")
        }
        self.renew()

    def renew(self) -> None:
        self.is_broken = False
        self._cursor = 0
        with suppress(MemoryLost):
            form = PackedDriver if self._packed else SplitDriver
            self._driver: Any = form(self._memory.map, self._place, self._size)

    def look(self) -> None:
        """Notes whether the back-end has said that the ring is broken.

        It has the same open file, and may have made it one that waits.
        """
        if select.select([self.fds["err"]], [], [], 0)[0]:
            os.eventfd_read(self.fds["err"].fileno())
            self.is_broken = True

    def descriptor(self, at: int, addr: int, length: int, flags: int, following: int) -> None:
        if self._packed:
            self._driver.descriptor(at, addr, length, following, flags)
        else:
            self._driver.descriptor(at, addr, length, flags, following)

    def offer(self, buffers: list[tuple[int, int, int]]) -> None:
        first, last = self._cursor, len(buffers) - 1
        self._cursor = (first + len(buffers)) % self._size
        linked = [
            (addr, length, flags | (NEXT if i < last else 0))
            for i, (addr, length, flags) in enumerate(buffers)
        ]
        if self._packed:
            self._driver.offer([(addr, length, first, flags) for addr, length, flags in linked])
            return
        for i, (addr, length, flags) in enumerate(linked):
            at = (first + i) % self._size
            self._driver.descriptor(at, addr, length, flags, (at + 1) % self._size)
        self.head(first)

    def head(self, head: int) -> None:
        if self._packed:
            self._driver.offer([(DATA, 16, head, 0)])
        else:
            self._driver.offer(head)
            self._driver.publish()

    def jump(self, count: int) -> None:
        if self._packed:
            self._driver.offer([(DATA, 16, i, 0) for i in range(count % self._size)] or [(0, 0, 0, 0)])
        else:
            self._driver.publish(count)

    def wish(self, position: int, flags: int) -> None:
        if self._packed:
            self._driver.suppress(position, flags)
        else:
            self._driver.set_used_event(position)

    def kick(self, count: int) -> None:
        for _ in range(count):
            with suppress(BlockingIOError):
                os.eventfd_write(self.fds["kick"].fileno(), 1)

    def close(self) -> None:
        for fd in self.fds.values():
            fd.close()
