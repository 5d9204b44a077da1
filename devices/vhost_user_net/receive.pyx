# cython: language_level=3, embedsignature=True, auto_pickle=False, autotestdict=False
"""Receive: packets from the host into the ring, without Python as long as all goes well.

With MRG_RXBUF a packet lies in as many buffers as it needs, and its header says in how many (virtio 1.3, 5.1.6.4). How
long a packet is nobody knows before it is read. So it is read into the buffers that the one before has needed, and
what is left of it into memory of ours, which is copied. A packet that finds too few buffers is kept there until there
are more.

Frames of a stream are checked and merged where the driver has agreed to that (see merging.pyx): what lies in our
memory already costs little to look at.
"""

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memmove, memset

from vhostd cimport BEGUN, BYTES_OF_EFFORT, LEFT, MOST_IOVECS, READ, RECEIVE, Chain, Ring, Shortcut
from vhostd cimport attempt, iovec
from vhost_user_net.frames cimport HEADER, LEAST_FRAME, MOST_FRAME, NUM_BUFFERS_AT
from vhost_user_net.layers cimport DATA_VALID, FLAGS_AT
from vhost_user_net.merging cimport Segment, append, dissect, goes_on, is_intact, may_grow, seal

import os
import time

from vhostd import BadRequest

cdef extern from "<sys/socket.h>" nogil:
    int MSG_DONTWAIT, MSG_TRUNC
    ssize_t recv(int fd, void *into, size_t n, int flags)

cdef extern from "<arpa/inet.h>" nogil:
    uint32_t ntohl(uint32_t number)

cdef enum:  # bytes
    SPARE = HEADER + MOST_FRAME
    LENGTH = 4  # in front of each frame in a stream
    INBOX = 1 << 18

cdef enum:
    MOST_DROPPED = 64  # packets in a row
    FRAMES_OF_EFFORT = 64  # that are merged

PATIENCE = 1.0  # seconds in which a driver adds buffers for a packet that they do not hold


cdef class Receive(Shortcut):
    """The pump of a receive queue: reads packets from an fd, or nothing while that is -1.

    `lost` is called when the fd leads nowhere any more. A packet that no buffers can hold is dropped.
    """

    cdef public int fd
    cdef public double patience
    cdef size_t header  # bytes of it, as negotiated
    cdef bint mergeable
    cdef object lost
    cdef list chains  # for the packet that is being received, in their order
    cdef size_t room  # bytes in them
    cdef size_t wish  # bytes that the packet before has needed
    cdef size_t had  # bytes that were too few, `since` then
    cdef double since
    cdef readonly uint64_t packets
    cdef readonly uint64_t octets
    cdef readonly uint64_t dropped

    def __init__(self, lost):
        self.lost = lost
        self.fd = -1
        self.patience = PATIENCE
        self.header = HEADER

    def clear(self):
        """Forgets a packet that waits."""

    def negotiate(self, size_t header, *, bint mergeable):
        """Writes headers of so many bytes from now on, for a driver that merges buffers, or does not."""
        self.header, self.mergeable = header, mergeable
        self.wish = self.had = 0

    cpdef int serve(self, queue, Chain chain) except -1:
        cdef Ring ring = queue.ring
        cdef ssize_t size
        cdef int outcome = LEFT
        self.chains, self.room = [], 0
        self.add(chain)
        try:
            for _ in range(MOST_DROPPED):
                size = self.fetch(ring)
                if not size:
                    break
                outcome = self.deliver(queue, ring, size)
                if outcome != LEFT or not self.keeps or self.had:
                    return outcome
            self.put_back(ring, 1)
            return LEFT
        finally:
            self.chains = None

    def offload(self, *, bint checks, bint merges_v4, bint merges_v6):
        """Checks checksums, and merges TCP over IPv4 or IPv6, if the driver has agreed: for what no kernel does."""

    cdef ssize_t fetch(self, Ring ring) except? -1:
        """Has a packet at hand, with its header, of so many bytes; 0 if the host has none now."""
        raise NotImplementedError

    cdef int store(self, size_t size, uint16_t buffers) except -1:
        """Has all of the packet in the chains, where there is room for it; its header says in how many it is."""
        raise NotImplementedError

    cdef int keep(self) except -1:
        """Has the packet wait, since there is no room for it now."""
        raise NotImplementedError

    cdef int drop(self) except -1:
        """Forgets the packet."""
        raise NotImplementedError

    cdef void say_buffers(self, uint8_t *header, uint16_t buffers) noexcept:
        """Writes in how many buffers the packet is, where a header has a place for it."""
        if self.header == HEADER:
            header[NUM_BUFFERS_AT] = buffers & 0xFF
            header[NUM_BUFFERS_AT + 1] = buffers >> 8

    # --- Chains -----------------------------------------------------------------------------------------

    cdef int add(self, Chain chain) except -1:
        if chain.source.left or chain.sink.left < self.header:
            raise BadRequest(f"a receive buffer of {chain.sink.left} bytes, and {chain.source.left} to read")
        if chain.has_holes:
            raise BadRequest(chain.unreachable)
        self.chains.append(chain)
        self.room += chain.sink.left
        return 0

    cdef bint gather(self, Ring ring, size_t size) except -1:
        """Takes chains until they have room for so many bytes; False if there are not as many."""
        cdef Chain chain
        while self.room < size:
            chain = ring.take() if self.mergeable else None
            if chain is None:
                return False
            self.add(chain)
        return True

    cdef int put_back(self, Ring ring, size_t first) except -1:
        """Gives up the chains from this one on."""
        cdef Chain chain
        while <size_t> len(self.chains) > first:
            chain = self.chains.pop()
            self.room -= chain.sink.left
            ring.put_back(chain)
        return 0

    cdef int deliver(self, queue, Ring ring, size_t size) except -1:
        """Has the driver see the packet, or keeps it."""
        cdef Chain chain
        cdef size_t room = 0
        cdef uint16_t buffers = 0
        while not self.gather(ring, size):
            if not self.mergeable:
                self.drop()
                self.dropped += 1
                return LEFT
            if ring.is_held or not ring.arm():
                return self.starve(queue, ring)
        for chain in self.chains:
            room += chain.sink.left
            buffers += 1
            if room >= size:
                break
        self.put_back(ring, buffers)
        self.store(size, buffers)
        (<Chain> self.chains[0]).among.effort += size // BYTES_OF_EFFORT
        self.wish, self.had = size, 0
        self.packets += 1
        self.octets += size - self.header
        if ring.give_back_all(self.chains):
            queue.flush()
        return BEGUN

    cdef int starve(self, queue, Ring ring) except -1:
        """Waits for more buffers; a driver that has no more to give will never take this packet."""
        cdef double now = time.monotonic()
        if self.room != self.had:
            self.had, self.since = self.room, now
        if now - self.since >= self.patience:
            self.drop()
            self.dropped += 1
            self.had = 0
            self.put_back(ring, 1)
            return LEFT
        self.keep()
        self.put_back(ring, 1)
        if not ring.is_held:
            queue.starve(self.patience)
        return LEFT

    cdef int copy(self, const uint8_t *data, size_t size) except -1:
        """Writes bytes behind those that the chains have, which have room for them."""
        cdef Chain chain
        cdef size_t step
        for chain in self.chains:
            step = min(size, chain.sink.left)
            chain._copy(&chain.sink, <unsigned char *> data, step)
            data += step
            size -= step
        (<Chain> self.chains[0]).memory.expect_whole()
        return 0

    cdef int fail(self, str why) except -1:
        """The fd leads nowhere any more."""
        self.fd = -1
        self.lost(why)
        return 0


cdef class PacketReceive(Receive):
    """Reads one packet at a time: of a tap device, with its header, or of a socket for datagrams."""

    cdef int call
    cdef size_t prefix  # bytes of the header that the fd does not give
    cdef iovec *iov
    cdef size_t pieces  # of guest memory that the packet was read into
    cdef size_t read_size  # bytes of the packet that were read, and come behind the prefix
    cdef size_t direct  # of them, those that are there
    cdef uint8_t *spare  # the rest of it; or all of it, while it is kept
    cdef size_t kept  # bytes of a packet that waits

    def __cinit__(self, *_):
        self.iov = <iovec *> malloc((2 * MOST_IOVECS + 1) * sizeof(iovec))
        self.spare = <uint8_t *> malloc(SPARE + 1)
        if self.iov is NULL or self.spare is NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.iov)
        free(self.spare)

    def clear(self):
        """Forgets a packet that waits."""
        self.drop()

    def negotiate(self, size_t header, *, bint mergeable):
        """As Receive's. A packet that waits has another header, and is forgotten."""
        if header != self.header:
            self.clear()
        Receive.negotiate(self, header, mergeable=mergeable)

    cdef ssize_t fetch(self, Ring ring) except? -1:
        cdef ssize_t size
        if self.kept:
            return self.kept
        if self.fd < 0:
            return 0
        self.gather(ring, self.wish)
        size = self.read()
        if size < 0:
            if size != -EAGAIN:
                self.fail(os.strerror(-size))
            return 0
        if size + self.prefix > SPARE or size + self.prefix < self.header + LEAST_FRAME:
            self.dropped += 1
            return 0
        self.read_size = size
        self.direct = min(<size_t> size, self.direct)
        return size + self.prefix

    cdef ssize_t read(self) except? -1:
        """Reads a packet into the chains, behind the prefix, and the rest of it into the spare memory."""
        cdef Chain chain
        cdef size_t skip = self.prefix
        cdef size_t i
        self.pieces = 0
        for chain in self.chains:
            if chain.sink.left > skip:
                self.pieces += chain._lend(&chain.sink, self.iov + self.pieces, chain.sink.left - skip, skip)
            skip = 0
            if self.pieces >= MOST_IOVECS - 1:
                self.pieces = MOST_IOVECS - 1
                break
        self.direct = 0
        for i in range(self.pieces):
            self.direct += self.iov[i].iov_len
        self.iov[self.pieces] = iovec(self.spare, SPARE + 1)
        return attempt(
            (<Chain> self.chains[0]).memory, self.call, self.fd, self.iov, self.pieces + 1, -1,
            MSG_DONTWAIT | MSG_TRUNC if self.call == RECEIVE else 0,
        )

    cdef int store(self, size_t size, uint16_t buffers) except -1:
        cdef uint8_t header[HEADER]
        if self.kept:
            self.say_buffers(self.spare, buffers)
            self.copy(self.spare, size)
            return self.drop()
        if self.prefix:
            memset(header, 0, HEADER)
            self.say_buffers(header, buffers)
            self.copy(header, self.prefix)
        elif self.header == HEADER:
            self.poke(NUM_BUFFERS_AT, buffers & 0xFF)
            self.poke(NUM_BUFFERS_AT + 1, buffers >> 8)
        self.advance(self.direct)
        return self.copy(self.spare, size - self.prefix - self.direct)

    cdef void poke(self, size_t at, uint8_t byte) noexcept:
        """Writes a byte of what was read."""
        cdef size_t i = 0
        while at >= self.iov[i].iov_len:
            at -= self.iov[i].iov_len
            i += 1
        (<uint8_t *> self.iov[i].iov_base)[at] = byte

    cdef void advance(self, size_t size) noexcept:
        """Passes over so many bytes of the chains, which the host has written."""
        cdef Chain chain
        cdef iovec *iov = self.iov
        cdef size_t step, count
        for chain in self.chains:
            step = min(size, chain.sink.left)
            if not step:
                break
            if chain.is_logged():
                count = chain._lend(&chain.sink, iov, step)
                chain.wrote(RECEIVE, iov, count, step)
            chain._advance(&chain.sink, step)
            size -= step

    cdef int keep(self) except -1:
        """Has all of the packet in the spare memory, in front of what is there already."""
        cdef size_t rest = 0, at, step, i
        if self.kept:
            return 0
        at = self.prefix
        # What went into the chains comes back: they are not the device's any more.
        rest = self.read_size - self.direct
        memmove(self.spare + at + self.direct, self.spare, rest)
        memset(self.spare, 0, at)
        for i in range(self.pieces):
            step = min(self.iov[i].iov_len, self.prefix + self.direct - at)
            memcpy(self.spare + at, self.iov[i].iov_base, step)
            at += step
        (<Chain> self.chains[0]).memory.expect_whole()
        self.kept = self.prefix + self.read_size
        self.keeps = True
        return 0

    cdef int drop(self) except -1:
        self.kept = 0
        self.keeps = False
        return 0


cdef class TapReceive(PacketReceive):
    """Reads packets of a tap device, which come with their headers."""

    def __init__(self, lost):
        super().__init__(lost)
        self.call = READ


cdef class DatagramReceive(PacketReceive):
    """Receives each datagram as a frame."""

    def __init__(self, lost):
        super().__init__(lost)
        self.call = RECEIVE
        self.prefix = HEADER

    def negotiate(self, size_t header, *, bint mergeable):
        super().negotiate(header, mergeable=mergeable)
        self.prefix = header


cdef class StreamReceive(Receive):
    """Reads frames of a stream, each behind its length."""

    cdef bint checks  # checksums for the driver
    cdef bint merges_v4
    cdef bint merges_v6
    cdef uint8_t *inbox
    cdef size_t begin  # of the frame at hand, with its length, or of what was read of the next one
    cdef size_t end
    cdef size_t size  # of the frame at hand; 0 if there is none
    cdef size_t behind  # where what follows it begins
    cdef uint8_t said[HEADER]  # the header of the frame at hand

    def __cinit__(self, *_):
        self.inbox = <uint8_t *> malloc(INBOX)
        if self.inbox is NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.inbox)

    def clear(self):
        """Forgets what was read: the stream is another one."""
        self.begin = self.end = self.size = 0
        self.keeps = False

    def offload(self, *, bint checks, bint merges_v4, bint merges_v6):
        if self.size and (checks, merges_v4, merges_v6) != (self.checks, self.merges_v4, self.merges_v6):
            self.drop()  # it was made for another driver
        self.checks, self.merges_v4, self.merges_v6 = checks, merges_v4, merges_v6

    cdef uint32_t length(self, size_t at) noexcept:
        """Of the frame that begins there; 0 if there are not as many bytes yet."""
        cdef uint32_t length
        if self.end - at < LENGTH:
            return 0
        memcpy(&length, self.inbox + at, LENGTH)
        return ntohl(length)

    cdef bint is_whole(self, size_t at) noexcept:
        return self.end - at >= LENGTH and self.end - at - LENGTH >= self.length(at)

    cdef ssize_t fetch(self, Ring ring) except? -1:
        cdef bint has_read = False
        while not self.size:
            if self.length(self.begin) > MOST_FRAME:
                self.fail(f"it says that {self.length(self.begin)} bytes of a frame follow")
                return 0
            if not self.is_whole(self.begin):
                if has_read or not self.read():  # short frames without end must not keep the event loop
                    return 0
                has_read = True
            elif self.length(self.begin) >= LEAST_FRAME:
                self.open(self.most(ring))
            else:
                self.begin += LENGTH + self.length(self.begin)
                self.dropped += 1
        return self.header + self.size

    cdef size_t most(self, Ring ring) noexcept:
        """How long a packet may be that the driver's buffers hold, by the one that is here.

        A driver may keep half of them to itself for long.
        """
        cdef size_t room = self.room - self.header
        return room * ring.size // 2 if self.mergeable else room

    cdef void open(self, size_t most) noexcept:
        """Has the frame at hand that is whole, and those that can be merged with it to so many bytes."""
        cdef Segment first
        self.size = self.length(self.begin)
        self.behind = self.begin + LENGTH + self.size
        memset(self.said, 0, HEADER)
        if self.checks and dissect(&first, self.inbox + self.begin + LENGTH, self.size) and is_intact(&first):
            self.said[FLAGS_AT] = DATA_VALID
            if (self.merges_v6 if first.is_v6 else self.merges_v4) and may_grow(&first):
                self.merge(&first, most)

    cdef void merge(self, Segment *first, size_t most) noexcept:
        """Appends the frames that go on where the first ends, as far as they are here already."""
        cdef Segment other
        cdef size_t step = first.end - first.payload, end = first.end
        while self.is_whole(self.behind) and self.length(self.behind) <= MOST_FRAME:
            if not dissect(&other, self.inbox + self.behind + LENGTH, self.length(self.behind)):
                break
            if not (may_grow(&other) and goes_on(first, &other, step, most) and is_intact(&other)):
                break
            self.behind += LENGTH + self.length(self.behind)
            if not append(first, &other, step):
                break
        if first.end > end:
            seal(first, step, self.said)
            (<Chain> self.chains[0]).among.effort += (first.end - first.payload) // step // FRAMES_OF_EFFORT
            self.size = first.end

    cdef bint read(self) except -1:
        """Reads more of the stream; False if there is no more now."""
        cdef ssize_t size
        if self.fd < 0:
            return False
        memmove(self.inbox, self.inbox + self.begin, self.end - self.begin)
        self.end -= self.begin
        self.begin = 0
        with nogil:
            size = recv(self.fd, self.inbox + self.end, INBOX - self.end, MSG_DONTWAIT)
        if size <= 0:
            if size == 0:
                self.fail("its other end is closed")
            elif errno not in (EAGAIN, EINTR):
                self.fail(os.strerror(errno))
            return False
        self.end += size
        return True

    cdef int store(self, size_t size, uint16_t buffers) except -1:
        self.say_buffers(self.said, buffers)
        self.copy(self.said, self.header)
        self.copy(self.inbox + self.begin + LENGTH, size - self.header)
        return self.drop()

    cdef int keep(self) except -1:
        self.keeps = True
        return 0

    cdef int drop(self) except -1:
        self.begin = self.behind
        self.size = 0
        self.keeps = self.is_whole(self.begin)
        return 0
