# cython: language_level=3, embedsignature=True, auto_pickle=False, autotestdict=False
"""Transmit: packets from the ring to the host, without Python as long as all goes well.

A packet is a header and a frame, cut into buffers anywhere (virtio 1.3, 5.1.6.2). A tap device takes both as they are,
and the kernel judges the header. Sockets take a frame alone: no header may ask for anything then, since no offload was
offered.
"""

from libc.errno cimport (
    EAGAIN, EBADF, EBADFD, ECONNREFUSED, ECONNRESET, EINVAL, EMSGSIZE, ENODEV, ENOENT, ENOTCONN, EPIPE, errno,
)
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memmove

from vhostd cimport BYTES_OF_EFFORT, DONE, LEFT, SEND, WRITE, Chain, Shortcut
from vhost_user_net.frames cimport HEADER, LEAST_FRAME, MOST_FRAME, SHORT_HEADER

import os
from contextlib import suppress

from vhostd import BadRequest

cdef extern from "<sys/socket.h>" nogil:
    int MSG_DONTWAIT, MSG_NOSIGNAL
    ssize_t send(int fd, const void *data, size_t n, int flags)

cdef extern from "<arpa/inet.h>" nogil:
    uint32_t htonl(uint32_t number)

cdef enum:
    NEEDS_CSUM = 1
    FLAGS_AT = 0  # in struct virtio_net_hdr
    GSO_TYPE_AT = 1
    LENGTH = 4  # bytes in front of each frame in a stream
    OUTBOX = 1 << 18  # bytes of frames that a stream takes at once
    AT_ONCE = 1 << 16  # that are sent before more are copied


cdef class Transmit(Shortcut):
    """Sends packets through an fd, or drops them while that is -1.

    It leaves a packet when the fd takes none now. What is wrong with one packet, and is no fault of the ring's, costs
    that packet. `lost` is called when the fd leads nowhere any more, `stuck` when a stream keeps frames.
    """

    cdef public int fd
    cdef public size_t header  # bytes of it, as negotiated
    cdef public object stuck
    cdef object lost
    cdef readonly uint64_t packets
    cdef readonly uint64_t octets
    cdef readonly uint64_t dropped

    def __init__(self, lost):
        self.lost = lost
        self.fd = -1
        self.header = HEADER

    cpdef int serve(self, queue, Chain chain) except -1:
        cdef size_t size = chain.source.left
        cdef ssize_t sent
        if size < self.header or chain.sink.left:
            raise BadRequest(f"a packet of {size} bytes with its header, and {chain.sink.left} to write")
        if chain.has_holes:
            raise BadRequest(chain.unreachable)
        size -= self.header
        if self.fd < 0 or not LEAST_FRAME <= size <= MOST_FRAME:
            self.dropped += 1
            return DONE
        sent = self.pass_on(chain, size)
        if sent == -EAGAIN:
            return LEFT
        if sent < 0:
            self.fail(sent)
            self.dropped += 1
        else:
            self.packets += 1
            self.octets += size
        return DONE

    @property
    def waits(self):
        """Whether frames wait for a stream to take them."""
        return False

    def flush(self):
        """Sends what a stream takes now of what waits."""

    def clear(self):
        """Forgets what waits: the stream is another one."""

    def send(self, bytes frame not None):
        """Sends a frame of ours, or loses it if it is not taken now."""
        raise NotImplementedError

    cdef ssize_t pass_on(self, Chain chain, size_t size) except? -1:
        """Sends a frame of so many bytes; -errno if that fails."""
        raise NotImplementedError

    cdef int fail(self, ssize_t error) except -1:
        """Notes whether the error is the fd's, and not the packet's."""
        if error in (-EBADF, -EBADFD, -ENODEV, -ECONNREFUSED, -ECONNRESET, -ENOENT, -ENOTCONN, -EPIPE):
            self.fd = -1
            self.lost(os.strerror(-error))
        return 0

    cdef bint asks_for_nothing(self, Chain chain) except -1:
        """Whether the header is one of a driver that knows that there are no offloads."""
        cdef uint8_t header[SHORT_HEADER]
        cdef size_t at = chain.source.at, skip = 0, i
        for i in range(2):
            while skip >= chain.iov[at].iov_len:
                skip -= chain.iov[at].iov_len
                at += 1
            header[i] = (<uint8_t *> chain.iov[at].iov_base)[skip]
            skip += 1
        return not header[FLAGS_AT] & NEEDS_CSUM and not header[GSO_TYPE_AT]


cdef class TapTransmit(Transmit):
    """Writes packets to a tap device, with their headers."""

    def send(self, bytes frame not None):
        if self.fd >= 0:
            with suppress(OSError):
                os.write(self.fd, bytes(self.header) + frame)

    cdef ssize_t pass_on(self, Chain chain, size_t size) except? -1:
        if not chain.fits_call():
            return -EMSGSIZE
        return chain.attempt(WRITE, self.fd, -1, size + self.header, 0)


cdef class DatagramTransmit(Transmit):
    """Sends each frame as a datagram."""

    def send(self, bytes frame not None):
        cdef const unsigned char *data = frame
        if self.fd >= 0:
            send(self.fd, data, len(frame), MSG_DONTWAIT | MSG_NOSIGNAL)

    cdef ssize_t pass_on(self, Chain chain, size_t size) except? -1:
        if not self.asks_for_nothing(chain):
            return -EINVAL
        if not chain.fits_call():
            return -EMSGSIZE
        return chain.attempt(SEND, self.fd, 0, size, MSG_DONTWAIT | MSG_NOSIGNAL, self.header)


cdef class StreamTransmit(Transmit):
    """Writes each frame to a stream, behind its length.

    Frames are gathered, and sent together. What the stream does not take at once goes later, by `flush`.
    """

    cdef unsigned char *outbox
    cdef size_t begin
    cdef size_t end

    def __cinit__(self, *_):
        self.outbox = <unsigned char *> malloc(OUTBOX)
        if self.outbox is NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.outbox)

    @property
    def waits(self):
        return self.end > self.begin

    def flush(self):
        self.push_out()

    def clear(self):
        self.begin = self.end = 0

    def send(self, bytes frame not None):
        cdef const unsigned char *data = frame
        cdef uint32_t length = htonl(<uint32_t> len(frame))
        self.move_down()
        if self.fd >= 0 and self.end + LENGTH + len(frame) <= OUTBOX:
            memcpy(self.outbox + self.end, &length, LENGTH)
            memcpy(self.outbox + self.end + LENGTH, data, len(frame))
            self.end += LENGTH + len(frame)
            self.submit()

    cpdef void submit(self) except *:
        self.push_out()
        if self.end > self.begin and self.stuck is not None:
            self.stuck()

    cdef ssize_t pass_on(self, Chain chain, size_t size) except? -1:
        cdef uint32_t length = htonl(<uint32_t> size)
        if not self.asks_for_nothing(chain):
            return -EINVAL
        if self.end - self.begin >= AT_ONCE:
            self.push_out()
        if self.end + LENGTH + size > OUTBOX:
            self.move_down()
            if self.fd < 0:
                return -EPIPE
            if self.end + LENGTH + size > OUTBOX:
                return -EAGAIN
        memcpy(self.outbox + self.end, &length, LENGTH)
        chain._advance(&chain.source, self.header)
        chain._copy(&chain.source, self.outbox + self.end + LENGTH, size)
        chain.memory.expect_whole()
        chain.among.effort += size // BYTES_OF_EFFORT
        self.end += LENGTH + size
        return size

    cdef void move_down(self) noexcept:
        memmove(self.outbox, self.outbox + self.begin, self.end - self.begin)
        self.end -= self.begin
        self.begin = 0

    cdef int push_out(self) except -1:
        cdef ssize_t sent
        if self.fd < 0 or self.end == self.begin:
            return 0
        with nogil:
            sent = send(self.fd, self.outbox + self.begin, self.end - self.begin, MSG_DONTWAIT | MSG_NOSIGNAL)
        if sent < 0:
            return self.fail(-errno)
        self.begin += sent
        if self.begin == self.end:
            self.begin = self.end = 0
        return 0
