# cython: language_level=3, embedsignature=True, auto_pickle=False, autotestdict=False
"""Traffic: packets between the rings and the host's sockets, without Python as long as all goes well.

Inbound, a pump, fills the receive queue: first with what is to be told the guest, then with bytes of the host's
sockets, which take turns, a packet each. Outbound, a shortcut, sends what the guest transmits right from its
memory to the host's socket. What that does not take at once waits, as much of it as the guest was told that there
is room for.

Set-up and tear-down are the switchboard's. It is told by its methods, and answers by those of Traffic.
"""

from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport EAGAIN, EFAULT, EINTR, EMSGSIZE, errno
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from posix.unistd cimport close

from vhostd cimport DONE, LEFT, RECEIVE, SEND, Chain, Shortcut
from vhost_user_vsock.connection cimport Connection, Header

import os
from collections import deque

from vhost_user_vsock.protocol import HOST_CID, Kind, Op, Shutdown
from vhostd import BadRequest

cdef extern from "<sys/epoll.h>" nogil:
    enum:
        EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD
        EPOLLIN, EPOLLOUT, EPOLLERR, EPOLLHUP
    union epoll_data_t:
        int fd
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epfd, int op, int fd, epoll_event *event)
    int epoll_wait(int epfd, epoll_event *events, int most, int timeout)

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
        MSG_DONTWAIT, MSG_EOR, MSG_NOSIGNAL, MSG_PEEK, MSG_TRUNC
    struct msghdr:
        iovec *msg_iov
        size_t msg_iovlen
        int msg_flags
    ssize_t send(int fd, const void *data, size_t size, int flags)
    enum:
        SHUT_RDWR
    ssize_t recv(int fd, void *into, size_t size, int flags)
    int shutdown(int fd, int how)
    ssize_t recvmsg(int fd, msghdr *message, int flags)

cdef enum:
    HEADER = 44  # bytes
    MOST_PACKET = 1 << 16  # bytes of data of a packet (5.10.6.1)
    MOST_MESSAGE = 1 << 20  # bytes of a SEQPACKET message of the host's
    MOST_RESETS = 1024  # that wait for the driver's buffers; with more, nothing that it transmits is taken
    EVENTS = 64  # that are asked for at once
    SCRAP = 1 << 12  # bytes of a closed connection that are read at once, for nobody
    LENGTH = 4  # bytes before each message that is pending
    SEQ_EOM = 1  # flags of RW (5.10.6.5)
    SEQ_EOR = 2
    NOT_WATCHED = -1

cdef uint32_t EOR = 0x8000_0000  # of a pending message's length: it ends a record
cdef uint64_t HOST = HOST_CID
cdef uint16_t STREAM = Kind.STREAM, SEQPACKET = Kind.SEQPACKET
cdef uint16_t REQUEST = Op.REQUEST, RESPONSE = Op.RESPONSE, RST = Op.RST, SHUTDOWN = Op.SHUTDOWN
cdef uint16_t RW = Op.RW, CREDIT_UPDATE = Op.CREDIT_UPDATE, CREDIT_REQUEST = Op.CREDIT_REQUEST
cdef unsigned SHUT_RECEIVE = Shutdown.RECEIVE, SHUT_SEND = Shutdown.SEND, SHUT_BOTH = Shutdown.BOTH
# What a connection is to tell the guest, in this order: SHUTDOWN comes after all data.
cdef tuple TOLD = (Op.REQUEST, Op.RESPONSE, Op.CREDIT_UPDATE, Op.CREDIT_REQUEST, Op.SHUTDOWN)


cdef key_of(uint64_t host_cid, uint32_t host_port, uint32_t guest_port):
    """What a connection is found by: a number, which for the host itself fits a word."""
    cdef uint64_t ports = <uint64_t> host_port << 32 | guest_port
    if host_cid == HOST:
        return ports
    return host_cid, ports


cdef class Traffic:
    """The connections of a guest, and what is to be told it.

    `inbound` and `outbound` are for the queues. `fileno` is readable when `flush` has something to do: a socket
    takes bytes again, is connected, or has been closed by its other end.
    """

    cdef readonly Inbound inbound
    cdef readonly Outbound outbound
    cdef readonly uint64_t guest_cid
    cdef object switchboard
    cdef dict table  # the guest's connections, by `key_of`
    cdef dict by_fd
    cdef object ready  # connections of which the host's end may have bytes
    cdef object speakers  # connections that have something to tell the guest
    cdef object resets  # headers
    cdef int inward  # epoll fds
    cdef int outward
    cdef int bell  # an eventfd in `inward`: there are speakers or resets
    cdef bint rung
    cdef bint bursts  # packets of the driver's are taken: what there is to tell is told at the end
    cdef bint fills  # buffers of the driver's are filled: likewise
    cdef bint looked  # meanwhile, for connections that have bytes: those are all
    cdef int partial  # ready connections of which a part of a message was read, and is not told yet

    def __cinit__(self):
        self.inward = self.outward = self.bell = -1

    def __init__(self, uint64_t guest_cid, switchboard):
        cdef epoll_event event
        self.guest_cid, self.switchboard = guest_cid, switchboard
        self.table, self.by_fd = {}, {}
        self.ready, self.speakers, self.resets = deque(), deque(), deque()
        self.inward, self.outward = epoll_create1(EPOLL_CLOEXEC), epoll_create1(EPOLL_CLOEXEC)
        self.bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        if self.inward < 0 or self.outward < 0:
            raise OSError(errno, os.strerror(errno))
        memset(&event, 0, sizeof(event))
        event.events, event.data.fd = EPOLLIN, self.bell
        epoll_ctl(self.inward, EPOLL_CTL_ADD, self.bell, &event)
        self.inbound, self.outbound = Inbound(self), Outbound(self)

    def __dealloc__(self):
        close(self.inward)
        close(self.outward)
        close(self.bell)

    def fileno(self):
        """An fd for the event loop, which calls `flush` when it is readable."""
        return self.outward

    # --- The switchboard's side -------------------------------------------------------------------------

    def find(self, uint64_t host_cid, uint32_t host_port, uint32_t guest_port):
        """The connection with these addresses, or None."""
        return self.table.get(key_of(host_cid, host_port, guest_port))

    def __iter__(self):
        """The guest's connections."""
        return iter(list(self.table.values()))

    def add(self, Connection connection not None):
        """Has packets of these addresses be the connection's."""
        self.table[key_of(connection.host_cid, connection.host_port, connection.guest_port)] = connection
        self.by_fd[connection.fd] = connection

    def watch(self, Connection connection not None, int events):
        """Watches the host's end before data may pass: `linked` tells of these events, `abandoned` of its close."""
        self.look_out(connection, events)

    def establish(self, Connection connection not None):
        """Lets data pass."""
        connection.established = True
        self.look_out(connection, NOT_WATCHED)
        self.look_in(connection, EPOLLIN)

    def tell(self, Connection connection not None, int operation):
        """Has the guest told REQUEST, RESPONSE, or SHUTDOWN with the flags that are `told`."""
        self.want(connection, <uint16_t> operation)

    def stop_reading(self, Connection connection not None):
        """Takes no more bytes of the host's end; its close is noticed."""
        if connection.established:
            self.look_in(connection, 0)

    def refuse(
        self, uint64_t host_cid, uint32_t host_port, uint32_t guest_port, uint16_t kind
    ):
        """Has the guest told RST."""
        cdef Header header
        memset(&header, 0, HEADER)
        header.src_cid, header.dst_cid = host_cid, self.guest_cid
        header.src_port, header.dst_port = host_port, guest_port
        header.type, header.op = kind, RST
        self.resets.append(PyBytes_FromStringAndSize(<char *> &header, HEADER))
        self.ring()

    def detach(self, Connection connection not None):
        """Takes the connection from the guest: its packets are nobody's. What is pending is still sent."""
        self.table.pop(key_of(connection.host_cid, connection.host_port, connection.guest_port), None)
        connection.detached = True
        connection.wants = 0
        self.look_in(connection, NOT_WATCHED)

    def release(self, Connection connection not None):
        """Ends the host's end, which is to be closed right after that, and forgets what is pending."""
        if connection.fd < 0:
            return
        end_gently(connection.fd)
        connection.inward = connection.outward = NOT_WATCHED  # its close does that
        self.by_fd.pop(connection.fd, None)
        connection.fd = -1
        connection.deaf = True
        connection.pending.clear()
        connection.fragments.clear()
        connection.message = None

    def clear_resets(self):
        """Forgets what was to be told a guest that is gone."""
        self.resets.clear()

    def flush(self):
        """Goes on with the sockets that can."""
        cdef epoll_event events[EVENTS]
        cdef Connection connection
        cdef int count = epoll_wait(self.outward, events, EVENTS, 0)
        cdef int i
        for i in range(count):
            connection = self.by_fd.get(events[i].data.fd)
            if connection is None or connection.outward == NOT_WATCHED:
                continue
            if connection.established or connection.pending:
                self.send_pending(connection)
            elif connection.outward:
                self.look_out(connection, 0)
                self.switchboard.linked(connection)
            else:
                self.look_out(connection, NOT_WATCHED)
                self.switchboard.abandoned(connection)

    # --- Watching ---------------------------------------------------------------------------------------

    cdef void look_in(self, Connection connection, int events) noexcept:
        """Watches the host's end for bytes to read, for its close alone, or not at all."""
        set_events(self.inward, connection.fd, connection.inward, events)
        connection.inward = events

    cdef void look_out(self, Connection connection, int events) noexcept:
        """Watches the host's end for room to write."""
        set_events(self.outward, connection.fd, connection.outward, events)
        connection.outward = events

    cdef int want(self, Connection connection, uint16_t operation) except -1:
        """Has the connection tell the guest this, once."""
        if connection.detached:
            return 0
        connection.wants |= <unsigned> 1 << operation
        if not connection.speaks:
            connection.speaks = True
            self.speakers.append(connection)
            self.ring()
        return 0

    cdef int ring(self) except -1:
        """There is something to tell."""
        if not self.rung and not self.bursts and not self.fills:
            self.rung = True
            os.eventfd_write(self.bell, 1)
        return 0

    cdef int end_burst(self) except -1:
        """Tells at once what there is to tell, as far as the driver has buffers."""
        if self.resets or self.speakers or self.ready:
            self.switchboard.pump()
        self.bursts = False  # what the driver has no buffers for waits until it has
        return self.ring_for_rest()

    cdef int end_run(self) except -1:
        """No more buffers are filled for now."""
        self.fills = self.looked = False
        return self.ring_for_rest()

    cdef int ring_for_rest(self) except -1:
        if self.resets or self.speakers or self.partial:
            self.ring()
        return 0

    cdef int quiet(self) except -1:
        """There are neither: the fd is to be readable for the host's sockets alone."""
        if self.rung and not self.partial:
            self.rung = False
            os.eventfd_read(self.bell)
        return 0

    cdef Connection next_ready(self):
        """The next connection that may have bytes, if there is one."""
        cdef epoll_event events[EVENTS]
        cdef Connection connection
        cdef int count, i
        if not (self.ready or self.looked or self.bursts):
            count = epoll_wait(self.inward, events, EVENTS, 0)
            self.looked = count < EVENTS
            for i in range(count):
                connection = self.by_fd.get(events[i].data.fd)
                if connection is None:
                    continue
                if connection.inward == EPOLLIN:
                    self.keep_ready(connection)
                elif connection.inward != NOT_WATCHED:  # it is watched for its close alone
                    self.look_in(connection, NOT_WATCHED)
                    self.switchboard.ended(connection, SHUT_BOTH)
        while self.ready:
            connection = self.ready.popleft()
            connection.is_ready = False
            self.partial -= connection.is_partial
            connection.is_partial = False
            if connection.inward == EPOLLIN:
                return connection
        return None

    cdef int keep_ready(self, Connection connection) except -1:
        """It may have more, and gets its next turn after all others that have something."""
        if connection.is_ready:
            return 0
        connection.is_ready = True
        self.ready.append(connection)
        if connection.message is not None:
            connection.is_partial = True
            self.partial += 1
            self.ring()
        return 0

    # --- To the host's end ------------------------------------------------------------------------------

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
            self.look_out(connection, EPOLLOUT)
        return 0

    cdef int deliver_fragment(self, Connection connection, Chain chain, Header *header) except -1:
        """The same of a message, which goes as a whole when its end is there."""
        cdef int flags = MSG_DONTWAIT | MSG_NOSIGNAL | (MSG_EOR if header.flags & SEQ_EOR else 0)
        cdef bint ends = header.flags & SEQ_EOM
        cdef bint is_whole = ends and not connection.fragments
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
                self.look_out(connection, EPOLLOUT)
                return 0
            del connection.pending[:skip + done]
        self.look_out(connection, NOT_WATCHED)
        self.switchboard.drained(connection)
        return 0

    cdef ssize_t sent(self, Connection connection, ssize_t done, size_t size) except -1:
        """How much the host's end has taken, of a call's result. What it takes no more is passed over."""
        if done >= 0:
            connection.forward(<uint32_t> done)
            if connection.owes_credit():
                self.want(connection, CREDIT_UPDATE)
            return done
        if done == -EAGAIN or done == -EINTR:
            return 0
        if done == -EFAULT:
            raise BadRequest("data outside of the memory that the front-end shares")
        self.deafen(connection)
        if done == -EMSGSIZE:
            self.switchboard.broke(connection, f"a message of {size} bytes is more than the host's end takes")
        else:
            self.switchboard.ended(connection, SHUT_RECEIVE)
        return 0

    cdef int deafen(self, Connection connection) except -1:
        """The host's end takes no more bytes: those that are pending are lost."""
        connection.deaf = True
        connection.forwarded = connection.received
        connection.pending.clear()
        connection.fragments.clear()
        self.look_out(connection, NOT_WATCHED)
        return 0


cdef void end_gently(int fd) noexcept:
    """Has both ends see the end. The other one would get an error if anything that it has sent was not read."""
    cdef char scrap[SCRAP]
    shutdown(fd, SHUT_RDWR)
    while recv(fd, scrap, SCRAP, MSG_DONTWAIT) > 0:
        pass


cdef int set_events(int epoll, int fd, int before, int events) noexcept:
    """Has an epoll look for these events at an fd, at which it looked for others before."""
    cdef epoll_event event
    if events == before or fd < 0:
        return 0
    memset(&event, 0, sizeof(event))
    event.events, event.data.fd = events if events >= 0 else 0, fd
    if events == NOT_WATCHED:
        return epoll_ctl(epoll, EPOLL_CTL_DEL, fd, &event)
    return epoll_ctl(epoll, EPOLL_CTL_ADD if before == NOT_WATCHED else EPOLL_CTL_MOD, fd, &event)


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
            if len(traffic.resets) == MOST_RESETS // 2:
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


cdef class Outbound(Shortcut):
    """The shortcut of the transmit queue. It leaves a packet only while too many resets wait for the guest."""

    cdef Traffic traffic

    def __init__(self, Traffic traffic):
        self.traffic = traffic

    cpdef int serve(self, queue, Chain chain) except -1:
        cdef Traffic traffic = self.traffic
        cdef Connection connection
        cdef Header header
        if len(traffic.resets) >= MOST_RESETS:
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
            self._take_strange(&header)
        else:
            self._take_control(connection, &header)
        traffic.end_burst()  # the driver waits for the answer, rather than for this packet
        return DONE

    cpdef void submit(self) except *:
        self.traffic.end_burst()

    cdef int _take_strange(self, Header *header) except -1:
        """A packet of no connection: a request may begin one."""
        if header.op == REQUEST and (header.type == STREAM or header.type == SEQPACKET):
            self.traffic.switchboard.requested(
                header.dst_cid, header.dst_port, header.src_port, header.type, (header.buf_alloc, header.fwd_cnt)
            )
        elif header.op != RST:
            self.traffic.refuse(header.dst_cid, header.dst_port, header.src_port, header.type)
        return 0

    cdef int _take_control(self, Connection connection, Header *header) except -1:
        """What sets a connection up or tears it down."""
        cdef object switchboard = self.traffic.switchboard
        connection.hear(header)
        if header.op == RST:
            switchboard.reset(connection)
        elif header.op == SHUTDOWN and connection.established:
            switchboard.shut(connection, header.flags & SHUT_BOTH)
        elif header.op == RESPONSE and not connection.established and connection.is_call:
            switchboard.answered(connection)
        else:
            switchboard.broke(connection, f"operation {header.op} is out of place")
        return 0

    cdef int _take_data(self, Connection connection, Chain chain, Header *header) except -1:
        """Data, and what is said of credit."""
        cdef Traffic traffic = self.traffic
        connection.hear(header)
        if connection.inward == NOT_WATCHED and connection.fd >= 0 and not connection.told & SHUT_SEND:
            if connection.credit():
                traffic.look_in(connection, EPOLLIN)
                traffic.keep_ready(connection)
        if header.op == CREDIT_REQUEST:
            traffic.want(connection, CREDIT_UPDATE)
        elif header.op == RW and header.len:
            if not connection.accept(header.len):
                traffic.switchboard.broke(connection, "the guest has sent more than there is room for")
            elif connection.deaf or connection.heard & SHUT_SEND:
                connection.forwarded = connection.received
            else:
                traffic.deliver(connection, chain, header)
        return 0
