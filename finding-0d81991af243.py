"""killed by SIGBUS

Found by `vhostctl fuzz`. It does the same again, and says how the back-end is then:

    python finding-0d81991af243.py --exec '/work/wt/fuzz/.venv/bin/python -S -E /work/wt/fuzz/tests/fuzz/planted.py {socket} none'

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
            SharedMemory(size, guest_addr=at, user_addr=at + 0x7f0000000000) for at, size in [(268435456, 1048576), (536870912, 65536), (536936448, 65536)]
        ]
        self.rings = [
            form(self.memories[0].map, 0x10000000 + index * 0x4000, size) for index in range(rings)
        ]
        self.kicks, self.calls, self.errs = (
            [Fd(os.eventfd(0, os.EFD_NONBLOCK)) for _ in range(rings)] for _ in range(3)
        )
        self.channels, self.pipes = {}, []

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
        if frontend is not None:
            frontend.close()
            guest.close()
        frontend = await reached(backend)
        guest = Guest(SplitDriver, 1, 256)
        await frontend.send_raw(raw_message(5, bytes.fromhex("00000000 00000000 00000000 00000000 00001000 00000000 00000010 007f0000 00000000 00000000")), guest.memories[0].fd)  # SET_MEM_TABLE
        await frontend.send_raw(raw_message(8, bytes.fromhex("00000000 00010000")))  # SET_VRING_NUM index=0 num=256
        await frontend.send_raw(raw_message(9, bytes.fromhex("00000000 00000000 00000000 00000000 00000000 00000000 00100010 007f0000 00000000 00000000")))  # SET_VRING_ADDR index=0 flags=0 desc=0 used=0 avail=0x7f0010001000 log=0
        await frontend.send_raw(raw_message(12, bytes.fromhex("00000000 00000000")), guest.kicks[0])  # SET_VRING_KICK value=0
        await answered(frontend)
        os.ftruncate(guest.memories[0].fd.fileno(), 0)
        os.eventfd_write(guest.kicks[0].fileno(), 1)
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
            is_well = backend.status == None
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
parser.add_argument("--exec", required=True, metavar="COMMAND")
parser.add_argument("--times", type=int, default=0)
raise SystemExit(asyncio.run(main(parser.parse_args())))
