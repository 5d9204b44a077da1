# cython: language_level=3, embedsignature=True, auto_pickle=False, autotestdict=False
"""Connection: one socket of the guest's, and the host's socket that it is connected to.

Both sides count bytes modulo 2^32, and tell each other how many they have passed on, and how much they keep at
most (virtio 1.3, 5.10.6.3). Neither sends more than the other has said it keeps.
"""

from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from vhost_user_vsock.protocol import Op

cdef unsigned CREDIT_UPDATE = 1 << <unsigned> Op.CREDIT_UPDATE


cdef class Connection:
    """A connection, by its addresses; `sock` is the host's end, which it owns, or None once that is closed.

    `is_call` says that the host has begun it. `established` says that data may pass. `told` and `heard` are flags of
    SHUTDOWN: those that the guest was told, and those that it has sent. `deaf` says that the host's end takes no
    more bytes, `detached` that the guest knows the connection no more.
    """

    def __init__(
        self,
        sock,
        uint16_t kind,
        *,
        uint64_t guest_cid,
        uint32_t guest_port,
        uint64_t host_cid,
        uint32_t host_port,
        uint32_t buf_alloc,
        bint is_call=False,
    ):
        self.sock, self.fd, self.kind, self.is_call = sock, sock.fileno(), kind, is_call
        self.guest_cid, self.guest_port = guest_cid, guest_port
        self.host_cid, self.host_port = host_cid, host_port
        self.buf_alloc = buf_alloc
        self.inward = self.outward = -1
        self.pending, self.fragments = bytearray(), bytearray()

    def __repr__(self):
        return f"{self.guest_cid}:{self.guest_port} with {self.host_cid}:{self.host_port}"

    @property
    def backlog(self):
        """How many bytes wait for the host's end to take them: the guest's, and the lengths of its messages."""
        return len(self.pending)

    def grant(self, uint32_t buf_alloc, uint32_t fwd_cnt):
        """Takes note of the credit of the guest's request."""
        self.peer_buf_alloc, self.peer_fwd_cnt = buf_alloc, fwd_cnt

    cdef void hear(self, Header *header) noexcept:
        """Takes note of the guest's credit, which is in each of its packets."""
        self.peer_buf_alloc, self.peer_fwd_cnt = header.buf_alloc, header.fwd_cnt
        self.asked = False

    cdef size_t credit(self) noexcept:
        """How many bytes the guest still keeps."""
        cdef int64_t free = <int64_t> self.peer_buf_alloc - <uint32_t> (self.sent - self.peer_fwd_cnt)
        return <size_t> free if free > 0 else 0

    cdef bint accept(self, uint32_t size) noexcept:
        """Takes so many bytes of the guest's; False if that is more than it was told to send."""
        if <uint64_t> <uint32_t> (self.received - self.forwarded) + size > self.buf_alloc:
            return False
        self.received += size
        return True

    cdef void forward(self, uint32_t size) noexcept:
        """So many of them are the host's now."""
        self.forwarded += size

    cdef bint owes_credit(self) noexcept:
        """Whether the guest is to be told of room, before it has to stop: it believes that most is taken.

        Linux sends no more at once than its own socket keeps, if that is less.
        """
        cdef uint32_t taken = self.received - self.announced
        return self.forwarded != self.announced and taken > min(self.buf_alloc, self.peer_buf_alloc) // 2

    cdef void fill(self, Header *header, uint16_t op, uint32_t size, uint32_t flags) noexcept:
        """Makes the header of a packet for the guest."""
        memset(header, 0, sizeof(Header))
        header.src_cid, header.dst_cid = self.host_cid, self.guest_cid
        header.src_port, header.dst_port = self.host_port, self.guest_port
        header.len, header.type, header.op, header.flags = size, self.kind, op, flags
        header.buf_alloc, header.fwd_cnt = self.buf_alloc, self.forwarded
        self.announced = self.forwarded
        self.wants &= ~CREDIT_UPDATE  # this was one
