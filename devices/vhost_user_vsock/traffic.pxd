# cython: language_level=3
"""What the shortcuts need of the traffic."""

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from vhost_user_vsock.connection cimport Connection

cdef extern from "<sys/epoll.h>" nogil:
    enum:
        EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD
        EPOLLIN, EPOLLOUT
    union epoll_data_t:
        int fd
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epfd, int op, int fd, epoll_event *event)
    int epoll_wait(int epfd, epoll_event *events, int most, int timeout)

cdef enum:
    HEADER = 44  # bytes
    SEQ_EOM = 1  # flags of RW (5.10.6.5)
    SEQ_EOR = 2
    NOT_WATCHED = -1


cdef key_of(uint64_t host_cid, uint32_t host_port, uint32_t guest_port)


cdef class Traffic:
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

    cdef void look_in(self, Connection connection, int events) noexcept
    cdef void look_out(self, Connection connection, int events) noexcept
    cdef int want(self, Connection connection, uint16_t operation) except -1
    cdef int ring(self) except -1
    cdef int end_burst(self) except -1
    cdef int end_run(self) except -1
    cdef int ring_for_rest(self) except -1
    cdef int quiet(self) except -1
    cdef Connection next_ready(self)
    cdef int keep_ready(self, Connection connection) except -1
