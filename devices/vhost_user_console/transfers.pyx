# cython: language_level=3, embedsignature=True, auto_pickle=False, autotestdict=False
"""From a line to the guest's buffers and back: one system call for each, without a copy on our side."""

from libc.errno cimport EAGAIN

from vhostd cimport DONE, LEFT, READ, WRITE, Chain, Shortcut

from vhostd import BadRequest

cdef enum:
    HERE = -1  # the offset that stands for none, for what has none


cdef class Input(Shortcut):
    """The pump of a receiveq: reads from `fd` into the driver's buffers.

    `heard` is called after each read, if it is not None, and `ended` when there is nothing more to be read, ever.
    """

    cdef public int fd
    cdef object heard
    cdef object ended

    def __init__(self, heard, ended):
        self.fd = -1
        self.heard = heard
        self.ended = ended

    cpdef int serve(self, queue, Chain chain) except -1:
        cdef ssize_t done
        if not chain.sink.left:
            return DONE  # a buffer without room: the driver has it back
        if self.fd < 0:
            return LEFT
        if chain.has_holes:
            raise BadRequest(chain.unreachable)
        done = chain.attempt(READ, self.fd, HERE, chain.sink.left, 0)
        if done == -EAGAIN:
            return LEFT
        if done <= 0:
            self.ended(-done)
            return LEFT
        chain.skip_writable(done)
        if self.heard is not None:
            self.heard()
        return DONE


cdef class Output(Shortcut):
    """The shortcut of a transmitq: writes what the driver sends to `fd`, if that takes it now.

    It leaves what the fd does not take. `fd` is -1 while nobody is there, or while older bytes wait.
    """

    cdef public int fd

    def __init__(self):
        self.fd = -1

    cpdef int serve(self, queue, Chain chain) except -1:
        cdef ssize_t done
        if self.fd < 0 or not chain.source.left:
            return LEFT
        done = chain.attempt(WRITE, self.fd, HERE, chain.source.left, 0)
        if done > 0:
            chain.skip(done)
        return LEFT if chain.source.left else DONE
