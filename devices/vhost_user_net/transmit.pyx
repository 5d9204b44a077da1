# cython: language_level=3, embedsignature=True, auto_pickle=False, autotestdict=False
"""Transmit: packets from the ring to the host, without Python as long as all goes well.

A packet is a header and a frame, cut into buffers anywhere (virtio 1.3, 5.1.6.2). A tap device takes both as they are,
and the kernel does what the header asks for. Sockets take a frame alone. For a stream, which has the frames in our
memory anyway, it is done here; for datagrams nothing was offered, and no header may ask for anything.
"""

from libc.errno cimport (
    EAGAIN, EBADF, EBADFD, ECONNREFUSED, ECONNRESET, EINVAL, EMSGSIZE, ENODEV, ENOENT, ENOTCONN, EPIPE, errno,
)
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memmove

from vhostd cimport BYTES_OF_EFFORT, DONE, LEFT, SEND, WRITE, Chain, Shortcut
from vhost_user_net.checksum cimport write_checksum
from vhost_user_net.frames cimport HEADER, LEAST_FRAME, MOST_FRAME, SHORT_HEADER
from vhost_user_net.layers cimport (
    CSUM_OFFSET_AT, CSUM_START_AT, FLAGS_AT, GSO_NONE, GSO_TYPE_AT, NEEDS_CSUM, get16_le,
)
from vhost_user_net.segments cimport Cut, cut_out, most_frames, most_headers, plan

import os
from contextlib import suppress

from vhostd import BadRequest

cdef extern from "<sys/socket.h>" nogil:
    int MSG_DONTWAIT, MSG_NOSIGNAL
    ssize_t send(int fd, const void *data, size_t n, int flags)

cdef extern from "<arpa/inet.h>" nogil:
    uint32_t htonl(uint32_t number)

cdef enum:
    LENGTH = 4  # bytes in front of each frame in a stream
    OUTBOX = 1 << 18  # bytes of frames that a stream takes at once
    AT_ONCE = 1 << 16  # that are sent before more are copied
    FRAMES_OF_EFFORT = 16  # that are cut out of a packet


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

    cdef void peek_header(self, Chain chain, uint8_t *header) noexcept:
        """Copies the header of a packet, whose chain stays as it is."""
        cdef size_t at = chain.source.at, skip = 0, i
        for i in range(SHORT_HEADER):
            while skip >= chain.iov[at].iov_len:
                skip -= chain.iov[at].iov_len
                at += 1
            header[i] = (<uint8_t *> chain.iov[at].iov_base)[skip]
            skip += 1


cdef inline bint asks_for_nothing(const uint8_t *header) noexcept:
    """Whether a packet is a frame as it is."""
    return not header[FLAGS_AT] & NEEDS_CSUM and header[GSO_TYPE_AT] == GSO_NONE


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
        cdef uint8_t header[SHORT_HEADER]
        self.peek_header(chain, header)
        if not asks_for_nothing(header):
            return -EINVAL
        if not chain.fits_call():
            return -EMSGSIZE
        return chain.attempt(SEND, self.fd, 0, size, MSG_DONTWAIT | MSG_NOSIGNAL, self.header)


cdef class StreamTransmit(Transmit):
    """Writes each frame to a stream, behind its length.

    Frames are gathered, and sent together. What the stream does not take at once goes later, by `flush`.
    """

    cdef unsigned char *outbox
    cdef unsigned char *packet  # one that is to be cut into frames
    cdef size_t begin
    cdef size_t end

    def __cinit__(self, *_):
        self.outbox = <unsigned char *> malloc(OUTBOX)
        self.packet = <unsigned char *> malloc(MOST_FRAME)
        if self.outbox is NULL or self.packet is NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.outbox)
        free(self.packet)

    @property
    def waits(self):
        return self.end > self.begin

    def flush(self):
        self.push_out()

    def clear(self):
        self.begin = self.end = 0

    def send(self, bytes frame not None):
        cdef const unsigned char *data = frame
        self.move_down()
        if self.fd >= 0 and self.end + LENGTH + len(frame) <= OUTBOX:
            memcpy(self.outbox + self.end + LENGTH, data, len(frame))
            self.add(len(frame))
            self.submit()

    cpdef void submit(self) except *:
        self.push_out()
        if self.end > self.begin and self.stuck is not None:
            self.stuck()

    cdef ssize_t pass_on(self, Chain chain, size_t size) except? -1:
        cdef uint8_t header[SHORT_HEADER]
        cdef bint is_cut
        cdef size_t most = LENGTH + size
        self.peek_header(chain, header)
        is_cut = header[GSO_TYPE_AT] != GSO_NONE
        if is_cut:
            most = size + most_frames(header, size) * (LENGTH + most_headers(header))
            if most > OUTBOX:
                return -EINVAL
        if not self.make_room(most):
            return -EPIPE if self.fd < 0 else -EAGAIN
        chain._advance(&chain.source, self.header)
        chain._copy(&chain.source, self.packet if is_cut else self.outbox + self.end + LENGTH, size)
        chain.memory.expect_whole()
        chain.among.effort += size // BYTES_OF_EFFORT
        return self.add_segments(chain, header, size) if is_cut else self.add_frame(header, size)

    cdef ssize_t add_frame(self, const uint8_t *header, size_t size) except? -1:
        """Adds the frame that was copied to its place, with its checksum if that is left to us."""
        cdef size_t start = get16_le(header + CSUM_START_AT), at = get16_le(header + CSUM_OFFSET_AT)
        if header[FLAGS_AT] & NEEDS_CSUM:
            if start + at + 2 > size:
                return -EINVAL
            write_checksum(self.outbox + self.end + LENGTH + start, size - start, at)
        self.add(size)
        return size

    cdef ssize_t add_segments(self, Chain chain, const uint8_t *header, size_t size) except? -1:
        """Adds the frames of a packet that was copied."""
        cdef Cut cut
        cdef size_t number
        if not plan(&cut, header, self.packet, size):
            return -EINVAL
        for number in range(cut.frames):
            self.add(cut_out(&cut, number, self.outbox + self.end + LENGTH))
        chain.among.effort += cut.frames // FRAMES_OF_EFFORT
        return size

    cdef void add(self, size_t size) noexcept:
        """Adds a frame of so many bytes, which is at its place already, by its length in front of it."""
        cdef uint32_t length = htonl(<uint32_t> size)
        memcpy(self.outbox + self.end, &length, LENGTH)
        self.end += LENGTH + size

    cdef bint make_room(self, size_t size) except -1:
        """Whether there is room for so many bytes more, with what the stream takes now out of the way."""
        if self.end - self.begin >= AT_ONCE:
            self.push_out()
        if self.end + size > OUTBOX:
            self.move_down()
        return self.end + size <= OUTBOX and self.fd >= 0

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
