# cython: language_level=3, embedsignature=True, auto_pickle=False, autotestdict=False
"""From a line to the guest's buffers and back: one system call for each, without a copy on our side.

What a line does not take now is kept in a Backlog. A console's driver sends a few bytes at a time, and waits for each
with a spinlock held, so these are kept without Python as well.
"""

from libc.errno cimport EAGAIN
from libc.stdint cimport uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memmove

from vhostd cimport DONE, LEFT, READ, WRITE, Chain, Shortcut

from vhostd import BadRequest

cdef enum:
    HERE = -1  # the offset that stands for none, for what has none
    FEW = 256  # bytes of a chain that are kept without Python


cdef class Backlog:
    """Bytes that wait, at most `most` of them: the oldest are dropped first, and counted in `dropped`."""

    cdef unsigned char *bytes
    cdef size_t room  # of which are used: `size` bytes from `begin` on
    cdef size_t begin
    cdef size_t size
    cdef size_t limit
    cdef readonly uint64_t dropped

    def __init__(self, size_t most):
        self.limit = most

    def __dealloc__(self):
        free(self.bytes)

    def __len__(self):
        return self.size

    @property
    def most(self):
        return self.limit

    @most.setter
    def most(self, size_t most):
        self.limit = most
        if self.size > most:
            self._drop(self.size - most)

    def add(self, const unsigned char[:] data not None):
        """Adds bytes at the end."""
        if len(data):
            self._put(&data[0], len(data))

    def head(self, size_t most):
        """The first bytes, at most so many. They wait on until `remove`."""
        return self.bytes[self.begin : self.begin + min(most, self.size)] if self.size else b""

    def remove(self, size_t count):
        """Takes the first bytes away, of which there are as many."""
        count = min(count, self.size)
        self.begin += count
        self.size -= count

    cdef void _drop(self, size_t count) noexcept:
        self.begin += count
        self.size -= count
        self.dropped += count

    cdef int _put(self, const unsigned char *data, size_t count) except -1:
        if count >= self.limit:
            self._drop(self.size)
            self.dropped += count - self.limit
            data += count - self.limit
            count = self.limit
        elif self.size + count > self.limit:
            self._drop(self.size + count - self.limit)
        if not count:  # there may be no memory yet
            return 0
        if self.begin + self.size + count > self.room:
            self._make_room(count)
        memcpy(self.bytes + self.begin + self.size, data, count)
        self.size += count
        return 0

    cdef int _make_room(self, size_t count) except -1:
        """Moves what there is to the start, in memory that has twice the room that is needed.

        So bytes are moved once for each time that they are as many as fit, and not whenever one is dropped.
        """
        cdef unsigned char *more
        cdef size_t needed = 2 * (self.size + count)
        if self.size:
            memmove(self.bytes, self.bytes + self.begin, self.size)
        self.begin = 0
        if needed > self.room:
            more = <unsigned char *> realloc(self.bytes, needed)
            if more is NULL:
                raise MemoryError
            self.bytes, self.room = more, needed
        return 0


cdef class Input(Shortcut):
    """The pump of a receiveq: reads from `fd`, -1 for none, into the driver's buffers.

    `heard` is called after each read, if it is not None, and `ended` when there is nothing more to be read, ever.
    """

    cdef public int fd
    cdef object heard
    cdef object ended
    cdef bint is_drained  # as far as this run knows; else the event loop says so

    def __init__(self, heard, ended):
        self.fd = -1
        self.heard = heard
        self.ended = ended

    cpdef int serve(self, queue, Chain chain) except -1:
        cdef size_t room = chain.sink.left
        cdef ssize_t done
        if not room:
            return DONE  # a buffer without room: the driver has it back
        if self.fd < 0 or self.is_drained:
            return LEFT
        if chain.has_holes:
            raise BadRequest(chain.unreachable)
        done = chain.attempt(READ, self.fd, HERE, room, 0)
        if done == -EAGAIN:
            return LEFT
        if done <= 0:
            self.ended()
            return LEFT
        chain.skip_writable(done)
        self.is_drained = <size_t> done < room
        if self.heard is not None:
            self.heard()
        return DONE

    cpdef void submit(self) except *:
        self.is_drained = False


cdef class Output(Shortcut):
    """The shortcut of a transmitq: writes what the driver sends to `fd`, if that takes it now.

    `fd` is -1 while nobody is there, or while older bytes wait. A few bytes are added to the backlog then, if that
    `has_room`. All else is left.
    """

    cdef public int fd
    cdef public bint has_room
    cdef Backlog backlog

    def __init__(self, Backlog backlog not None):
        self.fd = -1
        self.backlog = backlog

    cpdef int serve(self, queue, Chain chain) except -1:
        cdef unsigned char few[FEW]
        cdef size_t size = chain.source.left
        cdef ssize_t done
        if not size:
            return LEFT
        if self.fd >= 0:
            done = chain.attempt(WRITE, self.fd, HERE, size, 0)
            if done > 0:
                chain.skip(done)
            return LEFT if chain.source.left else DONE
        if self.has_room and size <= FEW and chain.peek(few, size):
            self.backlog._put(few, size)
            return DONE
        return LEFT
