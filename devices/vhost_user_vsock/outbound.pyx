# cython: language_level=3, embedsignature=True, auto_pickle=False, autotestdict=False
"""Outbound: sends what the guest transmits right from its memory to the host's sockets.

What a socket does not take at once waits, as much of it as the guest was told that there is room for.
"""

from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.errno cimport EAGAIN, EFAULT, EINTR, EMSGSIZE, errno
from libc.stdint cimport uint16_t, uint32_t
from libc.string cimport memcpy

from vhostd cimport DONE, LEFT, SEND, Chain, Shortcut
from vhost_user_vsock.connection cimport Connection, Header
from vhost_user_vsock.traffic cimport (
    EPOLLIN, EPOLLOUT, HEADER, NOT_WATCHED, SEQ_EOM, SEQ_EOR, Traffic, epoll_event, epoll_wait, key_of,
)

from vhost_user_vsock.protocol import Kind, Op, Shutdown
from vhostd import BadRequest

cdef extern from "<sys/socket.h>" nogil:
    enum:
        MSG_DONTWAIT, MSG_EOR, MSG_NOSIGNAL
    ssize_t send(int fd, const void *data, size_t size, int flags)

cdef enum:
    EVENTS = 64  # that are asked for at once
    LENGTH = 4  # bytes before each message that is pending

cdef uint32_t EOR = 0x8000_0000  # of a pending message's length: it ends a record
cdef uint16_t STREAM = Kind.STREAM, SEQPACKET = Kind.SEQPACKET
cdef uint16_t REQUEST = Op.REQUEST, RESPONSE = Op.RESPONSE, RST = Op.RST, SHUTDOWN = Op.SHUTDOWN
cdef uint16_t RW = Op.RW, CREDIT_UPDATE = Op.CREDIT_UPDATE, CREDIT_REQUEST = Op.CREDIT_REQUEST
cdef unsigned SHUT_RECEIVE = Shutdown.RECEIVE, SHUT_SEND = Shutdown.SEND, SHUT_BOTH = Shutdown.BOTH

MOST_RESETS = 1024  # that wait for the driver's buffers; with more, nothing that it transmits is taken
cdef Py_ssize_t MOST_WAITING = MOST_RESETS


cdef class Outbound(Shortcut):
    """The shortcut of the transmit queue. It leaves a packet only while too many resets wait for the guest."""

    cdef Traffic traffic

    def __init__(self, Traffic traffic):
        self.traffic = traffic

    def fileno(self):
        """An fd for the event loop, which calls `flush` when it is readable."""
        return self.traffic.outward

    def flush(self):
        """Goes on with the sockets that can: they take bytes again, are connected, or their other end was closed."""
        cdef Traffic traffic = self.traffic
        cdef epoll_event events[EVENTS]
        cdef Connection connection
        cdef int count = epoll_wait(traffic.outward, events, EVENTS, 0)
        cdef int i
        for i in range(count):
            connection = traffic.by_fd.get(events[i].data.fd)
            if connection is None or connection.outward == NOT_WATCHED:
                continue
            if connection.established or connection.pending:
                self.send_pending(connection)
            elif connection.outward:
                traffic.look_out(connection, 0)
                traffic.switchboard.linked(connection)
            else:
                traffic.look_out(connection, NOT_WATCHED)
                traffic.switchboard.abandoned(connection)

    cpdef int serve(self, queue, Chain chain) except -1:
        cdef Traffic traffic = self.traffic
        cdef Connection connection
        cdef Header header
        if len(traffic.resets) >= MOST_WAITING:
            return LEFT
        traffic.bursts = True
        chain.take(&header, HEADER)
        if header.len > chain.source.left:
            raise BadRequest(f"a packet that says {header.len} bytes, and has {chain.source.left}")
        if header.src_cid != traffic.guest_cid:
            return DONE
        connection = traffic.table.get(key_of(header.dst_cid, header.dst_port, header.src_port))
        if connection is not None and connection.kind == header.type and connection.established:
            if header.op == RW or header.op == CREDIT_UPDATE or header.op == CREDIT_REQUEST:
                self._take_data(connection, chain, &header)
                return DONE
        if connection is None or connection.kind != header.type:
            self._take_strange(&header, connection is None)
        else:
            self._take_control(connection, &header)
        traffic.end_burst()  # the driver waits for the answer, rather than for this packet
        return DONE

    cpdef void submit(self) except *:
        self.traffic.end_burst()

    cdef int _take_strange(self, Header *header, bint is_free) except -1:
        """A packet of no connection: a request may begin one, if the addresses are free."""
        if is_free and header.op == REQUEST and (header.type == STREAM or header.type == SEQPACKET):
            self.traffic.switchboard.requested(
                header.dst_cid, header.dst_port, header.src_port, header.type, (header.buf_alloc, header.fwd_cnt)
            )
        elif header.op != RST:
            self.traffic.refuse(header.dst_cid, header.dst_port, header.src_port, header.type)
        return 0

    cdef int _take_control(self, Connection connection, Header *header) except -1:
        """What sets a connection up or tears it down."""
        cdef object switchboard = self.traffic.switchboard
        self._hear(connection, header)
        if header.op == RST:
            switchboard.reset(connection)
        elif header.op == SHUTDOWN and connection.established:
            switchboard.shut(connection, header.flags & SHUT_BOTH)
        elif header.op == RESPONSE and not connection.established and connection.is_call:
            switchboard.answered(connection)
        else:
            switchboard.broke(connection, f"operation {header.op} is out of place")
        return 0

    cdef int _hear(self, Connection connection, Header *header) except -1:
        """Takes note of the credit that any packet tells of, and goes on with a host's end that waits for it."""
        cdef Traffic traffic = self.traffic
        connection.hear(header)
        if connection.inward != NOT_WATCHED or not connection.established or connection.fd < 0:
            return 0
        if connection.credit() and not connection.told & SHUT_SEND:
            traffic.look_in(connection, EPOLLIN)
            traffic.keep_ready(connection)
        return 0

    cdef int _take_data(self, Connection connection, Chain chain, Header *header) except -1:
        """Data, and what is said of credit."""
        cdef Traffic traffic = self.traffic
        self._hear(connection, header)
        if header.op == CREDIT_REQUEST:
            traffic.want(connection, CREDIT_UPDATE)
        elif header.op == RW and header.len:
            if not connection.accept(header.len):
                traffic.switchboard.broke(connection, "the guest has sent more than there is room for")
            elif connection.deaf or connection.heard & SHUT_SEND:
                connection.forwarded = connection.received
            else:
                self.deliver(connection, chain, header)
                self.settle(connection)  # a part of a message is not delivered, and takes room
        return 0

    cdef int deliver(self, Connection connection, Chain chain, Header *header) except -1:
        """Passes on the data of a packet, or keeps what does not go now."""
        cdef ssize_t done = 0
        cdef int flags = MSG_DONTWAIT | MSG_NOSIGNAL
        if connection.kind == SEQPACKET:
            return self.deliver_fragment(connection, chain, header)
        if not connection.pending:
            done = self.sent(connection, chain.attempt(SEND, connection.fd, 0, header.len, flags), header.len)
        if done < header.len and not connection.deaf:
            chain.skip(done)
            connection.pending += chain.read(header.len - done)
            self.traffic.look_out(connection, EPOLLOUT)
        return 0

    cdef int deliver_fragment(self, Connection connection, Chain chain, Header *header) except -1:
        """The same of a message, which goes as a whole when its end is there."""
        cdef int flags = MSG_DONTWAIT | MSG_NOSIGNAL | (MSG_EOR if header.flags & SEQ_EOR else 0)
        cdef bint ends = header.flags & SEQ_EOM
        cdef bint is_whole = ends and not connection.fragments and chain.fits_call()
        cdef uint32_t length
        if is_whole and not connection.pending:
            if self.sent(connection, chain.attempt(SEND, connection.fd, 0, header.len, flags), header.len):
                return 0
        if connection.deaf:
            return 0
        connection.fragments += chain.read(header.len)
        if ends:
            length = <uint32_t> len(connection.fragments) | (EOR if header.flags & SEQ_EOR else 0)
            connection.pending += PyBytes_FromStringAndSize(<char *> &length, LENGTH) + connection.fragments
            connection.fragments.clear()
            self.send_pending(connection)
        return 0

    cdef int send_pending(self, Connection connection) except -1:
        """Sends what is pending, as far as the host's end takes it."""
        cdef int flags = MSG_DONTWAIT | MSG_NOSIGNAL
        cdef size_t skip = 0
        cdef size_t size
        cdef ssize_t done
        cdef uint32_t length
        while connection.pending:
            size = len(connection.pending)
            if connection.kind == SEQPACKET:
                memcpy(&length, PyByteArray_AS_STRING(connection.pending), LENGTH)
                skip, size = LENGTH, length & ~EOR
                flags = MSG_DONTWAIT | MSG_NOSIGNAL | (MSG_EOR if length & EOR else 0)
            done = send(connection.fd, PyByteArray_AS_STRING(connection.pending) + skip, size, flags)
            done = self.sent(connection, done if done >= 0 else -errno, size)
            if connection.deaf:
                return 0
            if not done:
                self.traffic.look_out(connection, EPOLLOUT)
                return 0
            del connection.pending[:skip + done]
        self.traffic.look_out(connection, NOT_WATCHED)
        self.traffic.switchboard.drained(connection)
        return 0

    cdef ssize_t sent(self, Connection connection, ssize_t done, size_t size) except -1:
        """How much the host's end has taken, of a call's result. What it takes no more is passed over."""
        if done >= 0:
            connection.forward(<uint32_t> done)
            self.settle(connection)
            return done
        if done == -EAGAIN or done == -EINTR:
            return 0
        if done == -EFAULT:
            raise BadRequest("data outside of the memory that the front-end shares")
        self.deafen(connection)
        if done == -EMSGSIZE:
            self.traffic.switchboard.broke(connection, f"a message of {size} bytes is more than the host's end takes")
        else:
            self.traffic.switchboard.ended(connection, SHUT_RECEIVE)
        return 0

    cdef int settle(self, Connection connection) except -1:
        """Has the guest told of room, if it has to know."""
        if connection.owes_credit():
            self.traffic.want(connection, CREDIT_UPDATE)
        return 0

    cdef int deafen(self, Connection connection) except -1:
        """The host's end takes no more bytes: those that are pending are lost."""
        connection.deaf = True
        connection.forwarded = connection.received
        connection.pending.clear()
        connection.fragments.clear()
        self.traffic.look_out(connection, NOT_WATCHED)
        return 0
