# cython: language_level=3, embedsignature=True, auto_pickle=False, autotestdict=False
"""Traffic: the connections of a guest, which of them have bytes for it, and what it is to be told.

Two shortcuts move the bytes, without Python as long as all goes well: Inbound to the guest, Outbound from it. Set-up and
tear-down are the switchboard's. It is told by its methods, and answers by those of Traffic.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.errno cimport errno
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.string cimport memset
from posix.unistd cimport close

from vhost_user_vsock.connection cimport Connection, Header

import os
from collections import deque

from vhost_user_vsock.protocol import HOST_CID, Op, Shutdown

cdef extern from "<sys/socket.h>" nogil:
    enum:
        MSG_DONTWAIT
        SHUT_RDWR
    ssize_t recv(int fd, void *into, size_t size, int flags)
    int shutdown(int fd, int how)

cdef enum:
    EVENTS = 64  # that are asked for at once
    SCRAP = 1 << 12  # bytes of a closed connection that are read at once, for nobody

cdef uint64_t HOST = HOST_CID
cdef uint16_t RST = Op.RST
cdef unsigned SHUT_BOTH = Shutdown.BOTH


cdef key_of(uint64_t host_cid, uint32_t host_port, uint32_t guest_port):
    """What a connection is found by: a number, which for the host itself fits a word."""
    cdef uint64_t ports = <uint64_t> host_port << 32 | guest_port
    if host_cid == HOST:
        return ports
    return host_cid, ports


cdef class Traffic:
    """The connections of a guest, and what is to be told it."""

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

    def __dealloc__(self):
        close(self.inward)
        close(self.outward)
        close(self.bell)

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
        key = key_of(connection.host_cid, connection.host_port, connection.guest_port)
        if self.table.get(key) is connection:  # and not one that came after it
            del self.table[key]
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
