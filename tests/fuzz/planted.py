"""A tiny back-end that shares no code with vhostd, and has a fault of this name: planted.py SOCKET FAULT."""

import array
import mmap
import os
import select
import signal
import socket
import struct
import sys
import threading
import time
from contextlib import suppress

HEADER = struct.Struct("=III")
FEATURES, PROTOCOL = 1 << 30 | 1 << 32, 1 << 3  # protocol features and VERSION_1; REPLY_ACK
GET = {1: FEATURES, 15: PROTOCOL}
SET_MEM_TABLE, SET_VRING_NUM, SET_VRING_ADDR, GET_VRING_BASE, SET_VRING_KICK = 5, 8, 9, 11, 12
SET_LOG_FD, SET_VRING_ERR, SET_VRING_ENABLE, SET_OWNER = 7, 14, 18, 3


class Planted:
    """One front-end after the other; a ring, read at each kick."""

    def __init__(self, fault: str) -> None:
        self.fault = fault
        self.kept: list[object] = []
        self.regions: list[tuple[int, int, int, mmap.mmap]] = []
        self.areas: tuple[int, ...] = ()
        self.size = self.seen = 0
        self.kick = -1

    def serve(self, sock: socket.socket) -> None:
        while True:
            kicks = [self.kick] if self.kick >= 0 else []
            ready: list[int] = select.select([sock.fileno(), *kicks], [], [])[0]
            if self.kick in ready:
                with suppress(BlockingIOError):
                    os.read(self.kick, 8)
                self.look()
            if sock.fileno() in ready and not self.message(sock):
                break

    def reset(self) -> None:
        if self.kick >= 0:
            os.close(self.kick)
        self.kick, self.size, self.areas, self.regions = -1, 0, (), []

    def message(self, sock: socket.socket) -> bool:
        data, ancillary, _, _ = sock.recvmsg(HEADER.size, 4096, socket.MSG_WAITALL)
        fds = array.array("i", b"".join(each[2] for each in ancillary))
        kept = -1
        try:
            if len(data) < HEADER.size:
                return False
            request, flags, size = HEADER.unpack(data)
            payload = sock.recv(size, socket.MSG_WAITALL) if 0 < size <= 4096 else b""
            if len(payload) < size or flags & 3 != 1:
                return False
            kept = self.handle(request, payload, list(fds))
        finally:
            for fd in fds:
                if fd != kept:
                    os.close(fd)
        answer = GET.get(request, 0)
        if request in GET or request == GET_VRING_BASE or flags & 8:
            sock.sendall(HEADER.pack(request, 5, 8) + struct.pack("=Q", answer))
        return True

    def handle(self, request: int, payload: bytes, fds: list[int]) -> int:
        """Returns the fd that it keeps."""
        words = struct.unpack(f"={len(payload) // 4}I", payload[: len(payload) // 4 * 4])
        self.plant(request, words)
        for fd in fds if self.fault == "blocking" else ():
            with suppress(OSError):
                os.set_blocking(fd, True)
        if request == SET_MEM_TABLE and fds:
            with suppress(OSError, ValueError, struct.error):
                self.regions = [
                    (*struct.unpack_from("=QQQ", payload, 8 + 32 * i), mmap.mmap(fd, 0))
                    for i, fd in enumerate(fds)
                ]
        elif request == SET_VRING_NUM and len(words) > 1 and words[0] == 0:
            self.size, self.seen = words[1], 0
        elif request == SET_VRING_ADDR and words and words[0] == 0 and len(payload) >= 32:
            self.areas = struct.unpack_from("=QQQ", payload, 8)
        elif request == SET_VRING_KICK and fds and words and words[0] == 0 and is_eventfd(fds[0]):
            if self.kick >= 0:
                os.close(self.kick)
            self.kick = fds[0]
            os.set_blocking(self.kick, False)
            return self.kick
        elif self.fault == "leak" and request == SET_VRING_ERR and fds and words[0] > 64:
            return fds[0]
        return -1

    def plant(self, request: int, words: tuple[int, ...]) -> None:
        """The faults in messages."""
        if self.fault == "message" and request == SET_VRING_NUM and words[1:] and words[1] > 0x8000:
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.fault == "exit" and request == SET_LOG_FD:
            os._exit(3)
        if self.fault == "hang" and request == SET_VRING_ENABLE and words[1:] and words[1] > 1:
            time.sleep(1000)
        if self.fault == "report" and request == SET_OWNER:
            print("==1==ERROR: AddressSanitizer: heap-use-after-free", file=sys.stderr, flush=True)
        if self.fault == "memory" and request == SET_VRING_ENABLE and words[1:] and words[1] > 1:
            self.kept.append(b"x" * (20 << 20))
        if self.fault == "spin" and request == SET_VRING_NUM and words[1:] and words[1] > 0x8000:
            threading.Thread(target=self.spin, daemon=True).start()

    def spin(self) -> None:
        while True:
            pass

    def look(self) -> None:
        """Follows each new chain of the ring; the fault in descriptors."""
        if not self.areas or not 0 < self.size <= 1024:
            return
        desc, _, avail = self.areas
        index = struct.unpack("<H", self.at(avail + 2, 2) or bytes(2))[0]
        if (index - self.seen) % 65536 > self.size:
            self.seen = index
        while self.seen != index:
            head = struct.unpack("<H", self.at(avail + 4 + 2 * (self.seen % self.size), 2) or bytes(2))[0]
            for _ in range(self.size):
                entry = self.at(desc + 16 * head, 16)
                if entry is None:
                    break
                _, length, flags, head = struct.unpack("<QIHH", entry)
                if self.fault == "descriptor" and length >= 1 << 31:
                    os.abort()
                if not flags & 1:
                    break
            self.seen = (self.seen + 1) % 65536

    def at(self, addr: int, size: int) -> bytes | None:
        for _, length, user, memory in self.regions:
            if user <= addr and addr + size <= user + min(length, len(memory)):
                return memory[addr - user : addr - user + size]
        return None


def is_eventfd(fd: int) -> bool:
    return os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:[eventfd]"


def main() -> None:
    path, fault = sys.argv[1:]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        planted = Planted(fault)
        while True:
            sock, _ = listener.accept()
            with sock, suppress(ConnectionError):
                planted.serve(sock)
            planted.reset()
            if fault == "once":
                return


if __name__ == "__main__":
    main()
