# cython: language_level=3, embedsignature=True, auto_pickle=False, autotestdict=False
"""Inbound: fills the receive queue, first with what is to be told the guest, then with bytes of the host's sockets.

The sockets take turns, a packet each. Nothing is read that the guest has no credit for.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport EAGAIN, EFAULT, EINTR, errno
from libc.stdint cimport uint16_t, uint32_t
from libc.string cimport memset

from vhostd cimport DONE, LEFT, RECEIVE, Chain, Shortcut
from vhost_user_vsock.connection cimport Connection, Header
from vhost_user_vsock.traffic cimport EPOLLIN, HEADER, NOT_WATCHED, SEQ_EOM, SEQ_EOR, Traffic

from vhost_user_vsock.outbound import MOST_RESETS
from vhost_user_vsock.protocol import Kind, Op, Shutdown
from vhostd import BadRequest

cdef extern from "<poll.h>" nogil:
    enum:
        POLLHUP, POLLRDHUP
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *fds, unsigned long count, int timeout)

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len

cdef extern from "<sys/socket.h>" nogil:
    enum:
        MSG_DONTWAIT, MSG_EOR, MSG_PEEK, MSG_TRUNC
    struct msghdr:
        iovec *msg_iov
        size_t msg_iovlen
        int msg_flags
    ssize_t recv(int fd, void *into, size_t size, int flags)
    ssize_t recvmsg(int fd, msghdr *message, int flags)

cdef enum:
    MOST_PACKET = 1 << 16  # bytes of data of a packet (5.10.6.1)
    MOST_MESSAGE = 1 << 20  # bytes of a SEQPACKET message of the host's

cdef int FEW_RESETS = MOST_RESETS // 2
cdef uint16_t SEQPACKET = Kind.SEQPACKET
cdef uint16_t RW = Op.RW, CREDIT_REQUEST = Op.CREDIT_REQUEST, SHUTDOWN = Op.SHUTDOWN
cdef unsigned SHUT_SEND = Shutdown.SEND, SHUT_BOTH = Shutdown.BOTH
# What a connection is to tell the guest, in this order: SHUTDOWN comes after all data.
cdef tuple TOLD = (Op.REQUEST, Op.RESPONSE, Op.CREDIT_UPDATE, Op.CREDIT_REQUEST, Op.SHUTDOWN)


cdef class Inbound(Shortcut):
    """The pump of the receive queue. Its fd is readable while there is something for the guest."""

    cdef Traffic traffic

    def __init__(self, Traffic traffic):
        self.traffic = traffic

    def fileno(self):
        """The pump's fd."""
        return self.traffic.inward

    cpdef int serve(self, queue, Chain chain) except -1:
        cdef Traffic traffic = self.traffic
        cdef Connection connection
        traffic.fills = True
        if chain.sink.left < HEADER:
            raise BadRequest(f"a receive buffer of {chain.sink.left} bytes, less than a header")
        if self._tell(chain):
            return DONE
        while True:
            connection = traffic.next_ready()
            if connection is None:
                if self._tell(chain):  # looking has brought something to tell
                    return DONE
                return LEFT
            if self._bring(chain, connection):
                return DONE

    cpdef void submit(self) except *:
        self.traffic.end_run()

    cdef bint _tell(self, Chain chain) except -1:
        """Puts a packet without data into the chain, if there is one to tell."""
        cdef Traffic traffic = self.traffic
        cdef Connection connection
        cdef Header header
        if traffic.resets:
            reset = traffic.resets.popleft()
            chain.put(PyBytes_AS_STRING(reset), HEADER)
            if len(traffic.resets) == FEW_RESETS:
                traffic.switchboard.eased()
            return True
        while traffic.speakers:
            connection = traffic.speakers[0]
            if connection.wants:
                self._say(connection, &header)
                chain.put(&header, HEADER)
                return True
            connection.speaks = False
            traffic.speakers.popleft()
        traffic.quiet()
        return False

    cdef int _say(self, Connection connection, Header *header) except -1:
        """The first of what the connection wants to tell."""
        cdef uint16_t operation
        for operation in TOLD:
            if connection.wants >> operation & 1:
                break
        connection.wants &= ~(<unsigned> 1 << operation)
        connection.fill(header, operation, 0, connection.told if operation == SHUTDOWN else 0)
        return 0

    cdef bint _bring(self, Chain chain, Connection connection) except -1:
        """Fills the chain with bytes of the host's end, if it has some, and the guest keeps them."""
        cdef size_t most = min(min(connection.credit(), chain.sink.left - HEADER), <size_t> MOST_PACKET)
        cdef Header header
        cdef ssize_t done
        if chain.sink.left == HEADER:
            raise BadRequest("a receive buffer without room behind the header")
        if not most:
            return self._stall(connection)
        if connection.kind == SEQPACKET:
            return self._bring_fragment(chain, connection, most)
        done = chain.attempt(RECEIVE, connection.fd, 0, most, MSG_DONTWAIT, HEADER)
        if done <= 0:
            return self._end(connection, done)
        self._pack(chain, connection, done, 0)
        chain.skip_writable(done)
        if <size_t> done == most:  # else it had no more; if it has by now, the fd says so
            self.traffic.keep_ready(connection)
        return True

    cdef bint _bring_fragment(self, Chain chain, Connection connection, size_t most) except -1:
        """The same of a message, of which the last piece says that it ends."""
        cdef size_t left
        if connection.message is None:
            self._next_message(connection)
            if connection.message is None:
                return False
        left = len(connection.message) - connection.at
        most = min(most, left)
        self._pack(chain, connection, most, connection.message_flags if most == left else 0)
        chain.put(PyBytes_AS_STRING(connection.message) + connection.at, most)
        connection.at += most
        if most == left:
            connection.message = None
        self.traffic.keep_ready(connection)
        return True

    cdef int _next_message(self, Connection connection) except -1:
        """Takes a message from the host's end, if there is one that the guest can take as a whole."""
        cdef char first  # AF_VSOCK tells of no length to whoever wants no byte
        cdef ssize_t size = recv(connection.fd, &first, 1, MSG_PEEK | MSG_TRUNC | MSG_DONTWAIT)
        cdef msghdr message
        cdef iovec part
        if size < 0:
            return self._end(connection, -errno)
        if size == 0 and state_of(connection.fd) & POLLRDHUP:
            return self._end(connection, 0)
        if size > min(connection.peer_buf_alloc, <uint32_t> MOST_MESSAGE):
            self.traffic.switchboard.broke(connection, f"a message of {size} bytes is more than the guest takes")
            return 0
        data = PyBytes_FromStringAndSize(NULL, size)
        memset(&message, 0, sizeof(message))
        part.iov_base, part.iov_len = PyBytes_AS_STRING(data), size
        message.msg_iov, message.msg_iovlen = &part, 1
        if recvmsg(connection.fd, &message, MSG_DONTWAIT) != size:
            return self._end(connection, -errno)
        if size:  # Linux knows no empty ones
            connection.message, connection.at = data, 0
            connection.message_flags = SEQ_EOM | (SEQ_EOR if message.msg_flags & MSG_EOR else 0)
        return 0

    cdef int _pack(self, Chain chain, Connection connection, size_t size, uint32_t flags) except -1:
        """Writes the header of a packet with so many bytes."""
        cdef Header header
        connection.fill(&header, RW, <uint32_t> size, flags)
        connection.sent += <uint32_t> size
        return chain.put(&header, HEADER)

    cdef bint _stall(self, Connection connection) except -1:
        """The guest keeps no more: it is asked, once, and its next packet says more."""
        self.traffic.look_in(connection, NOT_WATCHED)
        if not connection.asked:
            connection.asked = True
            self.traffic.want(connection, CREDIT_REQUEST)
        return False

    cdef bint _end(self, Connection connection, ssize_t done) except -1:
        """The host's end has no more bytes, for now or for good."""
        cdef Traffic traffic = self.traffic
        if done == -EAGAIN or done == -EINTR:
            return False
        if done == -EFAULT:
            raise BadRequest("a receive buffer outside of the memory that the front-end shares")
        if done < 0 or state_of(connection.fd) & POLLHUP:
            traffic.look_in(connection, NOT_WATCHED)
            traffic.switchboard.ended(connection, SHUT_BOTH)
        else:
            traffic.look_in(connection, 0)
            traffic.switchboard.ended(connection, SHUT_SEND)
        return False


cdef int state_of(int fd) noexcept:
    """What poll(2) says of an fd now."""
    cdef pollfd state
    state.fd, state.events, state.revents = fd, POLLRDHUP, 0
    poll(&state, 1, 0)
    return state.revents
