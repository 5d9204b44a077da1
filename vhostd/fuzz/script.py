"""Writes a case as a script of the front-end, for somebody who has a back-end to mend."""

import struct
from collections.abc import Callable, Iterator

from vhostd.fuzz import operation as o
from vhostd.fuzz.place import DATA, MEMORIES, USER, ring_addr
from vhostd.fuzz.strange import KINDS
from vhostd.fuzz.verdict import GROWING, Finding
from vhostd.ring.driver import NEXT
from vhostd.vhost_user.messages import REQUESTS
from vhostd.wire.framing import VERSION

HEAD = '''"""{text}

Found by `vhostctl fuzz`. It does the same again, and says how the back-end is then:

    python {name} --exec {command!r}

For what grows it does so --times more.
"""

import argparse
import asyncio
import os
import socket
from contextlib import suppress

from vhostd.errors import SetupError
from vhostd.frontend import Backend, SharedMemory, raw_message
from vhostd.fuzz.strange import open_fd
from vhostd.fuzz.verdict import reports
from vhostd.ring.driver import SplitDriver
from vhostd.ring.driver_packed import PackedDriver
from vhostd.vhost_user.messages import GET_FEATURES
from vhostd.wire.fds import Fd, close_all
from vhostd.wire.framing import HEADER
from vhostd.wire.rows import Empty


class Guest:
    """Memory, rings and eventfds; `channels` and `pipes` are what the back-end has the other ends of."""

    def __init__(self, form, rings, size):
        self.memories = [
            SharedMemory(size, guest_addr=at, user_addr=at + {user:#x}) for at, size in {memories}
        ]
        self.rings = [
            form(self.memories[0].map, {first:#x} + index * {room:#x}, size) for index in range(rings)
        ]
        self.kicks, self.calls, self.errs = (
            [Fd(os.eventfd(0, os.EFD_NONBLOCK)) for _ in range(rings)] for _ in range(3)
        )
        self.channels, self.pipes = {{}}, []

    def channel(self, name):
        """A socket for the back-end; what it says there stays unanswered."""
        self.channels[name], theirs = socket.socketpair()
        return Fd(theirs.detach())

    def reader(self):
        """The end to write to of a pipe."""
        ours, theirs = os.pipe()
        self.pipes.append(Fd(ours))
        return Fd(theirs)

    def write(self, addr, data):
        """Writes into the memory."""
        for memory in self.memories:
            if memory.guest_addr <= addr < memory.guest_addr + memory.size:
                memory.map.write(addr, data[: memory.guest_addr + memory.size - addr])

    def close(self):
        for several in (self.memories, self.kicks, self.calls, self.errs, self.channels.values(), self.pipes):
            for each in several:
                each.close()


async def reached(backend):
    """A connection that it serves. It may turn some away while it is busy with the end of the last one."""
    for _ in range(50):
        frontend = await backend.connect()
        try:
            await frontend.call(GET_FEATURES, Empty())
        except ConnectionError:
            frontend.close()
            await asyncio.sleep(0.1)
        else:
            return frontend
    raise TimeoutError


async def answered(frontend):
    """Waits until the back-end has answered all messages, or has closed the connection, or does neither."""
    with suppress(ConnectionError, TimeoutError):
        await frontend.send_raw(raw_message(GET_FEATURES.request))
        heard = b""
        while True:
            received = await frontend.receive_raw()
            close_all(received.fds)
            heard += received.data
            while len(heard) >= HEADER.size:
                request, _, size = HEADER.unpack_from(heard)
                heard = heard[HEADER.size + size :]
                if request == GET_FEATURES.request:
                    return
            if not received.data:
                return


async def steps(backend):
    """What leads to it."""
    frontend = guest = None
    try:
'''

TAIL = '''        if frontend is not None:
            await answered(frontend)
    except ConnectionError:
        print("the back-end has closed the connection")
    finally:
        if frontend is not None:
            frontend.close()
        if guest is not None:
            guest.close()


async def serves(backend):
    """Whether it answers a new front-end."""
    try:
        (await reached(backend)).close()
    except (OSError, SetupError):
        return False
    return True


def occupied(backend):
    """How many fds it has, and how many MiB of memory."""
    with open(f"/proc/{backend.pid}/statm") as file:
        pages = int(file.read().split()[1])
    return len(os.listdir(f"/proc/{backend.pid}/fd")), pages * os.sysconf("SC_PAGE_SIZE") >> 20


async def main(options):
    async with Backend(options.exec, patience=5) as backend:
        await steps(backend)
        is_well = await serves(backend)
        before = occupied(backend) if is_well else (0, 0)
        for _ in range(options.times if is_well else 0):
            await steps(backend)
        is_well = is_well and await serves(backend)
        if backend.status is not None:
            print(f"it has ended: {backend.status}")
            is_well = backend.status == USUAL
        elif not is_well:
            print("it does not answer any more")
        else:
            fds, memory = (now - then for now, then in zip(occupied(backend), before))
            print(f"it goes on, with {fds} fds and {memory} MiB more than before")
            is_well = not options.times or (fds <= options.times // 2 and memory < 8 * options.times)
        said = backend.output.splitlines()
        for line in said[-10:]:
            print(line)
        return 0 if is_well and not reports(said) else 1


parser = argparse.ArgumentParser()
parser.add_argument("--exec", required=True, metavar="CMD")
parser.add_argument("--times", type=int, default=TIMES)
raise SystemExit(asyncio.run(main(parser.parse_args())))
'''


def script(case: o.Case, finding: Finding, command: str, name: str, usual: int | None) -> str:
    """The script's text. Run, its exit status is 1 if the back-end has come to harm.

    `usual` is the status with which it ends when its front-end goes.
    """
    head = HEAD.format(
        text=repr(finding.text)[1:-1].replace('"', "'"),  # a log line may hold anything
        name=name,
        command=command,
        user=USER,
        memories=list(MEMORIES),
        first=ring_addr(0),
        room=ring_addr(1) - ring_addr(0),
    )
    times = "8" if finding.kind in GROWING else "0"
    return (
        head
        + "".join(f"        {line}\n" for line in _Writer().lines(case))
        + TAIL.replace("TIMES", times).replace("USUAL", str(usual))
    )


class _Writer:
    """Writes operations down as calls. It knows where each ring's next descriptor is, as the `Rig` does."""

    def __init__(self) -> None:
        self._packed = False
        self._size = 1
        self._rings = 1
        self._cursors: list[int] = []

    def lines(self, case: o.Case) -> Iterator[str]:
        """The lines of a case."""
        for operation in case:
            yield from _WAYS[type(operation)](self, operation)

    def connect(self, it: o.Connect) -> Iterator[str]:
        self._packed, self._size, self._rings = it.packed, it.size, it.rings
        self._cursors = [0] * it.rings
        yield "if frontend is not None:"
        yield "    frontend.close()"
        yield "    guest.close()"
        yield "frontend = await reached(backend)"
        yield f"guest = Guest({'PackedDriver' if it.packed else 'SplitDriver'}, {it.rings}, {it.size})"

    def send(self, it: o.Send) -> Iterator[str]:
        arguments = [str(it.request)]
        if it.payload:
            arguments.append(f'bytes.fromhex("{it.payload.hex(" ", 4)}")')
        if it.flags != VERSION:
            arguments.append(f"flags={it.flags:#x}")
        if it.size is not None:
            arguments.append(f"size={it.size}")
        strange = [
            kind for kind in it.fds if kind in KINDS or kind in ("own", "reader", "backend", "display")
        ]
        named: dict[int, str] = {}
        for number, kind in enumerate(it.fds):
            if kind in strange:
                named[number] = f"fd{number}"
                yield f"fd{number} = {self._made(kind)}"
        fds = [named.get(number) or self._own(kind) for number, kind in enumerate(it.fds)]
        words = ", ".join((f"raw_message({', '.join(arguments)})", *fds))
        yield f"await frontend.send_raw({words})  # {_shown(it)}"
        yield from (f"{name}.close()" for name in named.values())

    def settle(self, _: o.Await) -> Iterator[str]:
        yield "await answered(frontend)"

    def renew(self, it: o.Renew) -> Iterator[str]:
        ring = it.ring % self._rings
        self._cursors[ring] = 0
        form = "PackedDriver" if self._packed else "SplitDriver"
        yield f"guest.rings[{ring}] = {form}(guest.memories[0].map, {ring_addr(ring):#x}, {self._size})"

    def descriptor(self, it: o.Descriptor) -> Iterator[str]:
        last = (it.following, f"{it.flags:#x}") if self._packed else (f"{it.flags:#x}", it.following)
        yield f"{self._ring(it)}.descriptor({it.at}, {it.addr:#x}, {it.length:#x}, {last[0]}, {last[1]})"

    def offer(self, it: o.Offer) -> Iterator[str]:
        ring = it.ring % self._rings
        first, last = self._cursors[ring], len(it.buffers) - 1
        self._cursors[ring] = (first + len(it.buffers)) % self._size
        if self._packed:
            linked = [
                f"({addr:#x}, {length:#x}, {first}, {flags | (NEXT if i < last else 0):#x})"
                for i, (addr, length, flags) in enumerate(it.buffers)
            ]
            yield f"guest.rings[{ring}].offer([{', '.join(linked)}])"
            return
        for i, (addr, length, flags) in enumerate(it.buffers):
            at = (first + i) % self._size
            flags |= NEXT if i < last else 0
            following = (at + 1) % self._size
            yield f"guest.rings[{ring}].descriptor({at}, {addr:#x}, {length:#x}, {flags:#x}, {following})"
        yield from self._published(ring, first)

    def head(self, it: o.Head) -> Iterator[str]:
        ring = it.ring % self._rings
        if self._packed:
            yield f"guest.rings[{ring}].offer([({DATA:#x}, 16, {it.head}, 0)])"
        else:
            yield from self._published(ring, it.head)

    def jump(self, it: o.Jump) -> Iterator[str]:
        if self._packed:
            count = it.count % self._size
            entries = f"[({DATA:#x}, 16, i, 0) for i in range({count})]" if count else "[(0, 0, 0, 0)]"
            yield f"{self._ring(it)}.offer({entries})"
        else:
            yield f"{self._ring(it)}.publish({it.count})"

    def wish(self, it: o.Wish) -> Iterator[str]:
        wish = f"suppress({it.position}, {it.flags})" if self._packed else f"set_used_event({it.position})"
        yield f"{self._ring(it)}.{wish}"

    def kick(self, it: o.Kick) -> Iterator[str]:
        for _ in range(it.count):
            yield f"os.eventfd_write(guest.kicks[{it.ring % self._rings}].fileno(), 1)"

    def write(self, it: o.Write) -> Iterator[str]:
        yield f'guest.write({it.addr:#x}, bytes.fromhex("{it.data.hex(" ", 4)}"))'

    def resize(self, it: o.Resize) -> Iterator[str]:
        yield f"os.ftruncate(guest.memories[{it.memory % len(MEMORIES)}].fd.fileno(), {it.size})"

    def tell(self, it: o.Tell) -> Iterator[str]:
        yield f'if "{it.channel}" in guest.channels:'
        yield f'    guest.channels["{it.channel}"].send(bytes.fromhex("{it.data.hex()}"))'

    def stranger(self, _: o.Stranger) -> Iterator[str]:
        yield "(await backend.connect()).close()"

    def disconnect(self, _: o.Disconnect) -> Iterator[str]:
        yield "frontend.close()"

    def _ring(self, it: o.RingOperation) -> str:
        return f"guest.rings[{it.ring % self._rings}]"

    def _published(self, ring: int, head: int) -> Iterator[str]:
        yield f"guest.rings[{ring}].offer({head})"
        yield f"guest.rings[{ring}].publish()"

    def _own(self, kind: str) -> str:
        name, number = kind.rstrip("0123456789"), int("0" + kind.lstrip("abcdefghijklmnopqrstuvwxyz"))
        if name == "memory":
            return f"guest.memories[{number % len(MEMORIES)}].fd"
        return f"guest.{name}s[{number % self._rings}]"

    def _made(self, kind: str) -> str:
        if kind == "reader":
            return "guest.reader()"
        if kind == "own":
            return "Fd(os.dup(frontend._socket.fileno()))"
        if kind in ("backend", "display"):
            return f'guest.channel("{kind}")'
        return f'open_fd("{kind}")'


_WAYS: dict[type, Callable[..., Iterator[str]]] = {
    o.Connect: _Writer.connect,
    o.Send: _Writer.send,
    o.Await: _Writer.settle,
    o.Renew: _Writer.renew,
    o.Descriptor: _Writer.descriptor,
    o.Offer: _Writer.offer,
    o.Head: _Writer.head,
    o.Jump: _Writer.jump,
    o.Wish: _Writer.wish,
    o.Kick: _Writer.kick,
    o.Write: _Writer.write,
    o.Resize: _Writer.resize,
    o.Tell: _Writer.tell,
    o.Stranger: _Writer.stranger,
    o.Disconnect: _Writer.disconnect,
}


def _shown(it: o.Send) -> str:
    """The message for a reader."""
    known = REQUESTS.get(it.request)
    if known is None:
        return f"request {it.request}"
    try:
        return f"{known} {known.payload.unpack(it.payload)}".rstrip()
    except struct.error:
        return f"{known}, cut"
