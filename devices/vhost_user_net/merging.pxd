# cython: language_level=3
"""Frames of one TCP connection, and the long packet that they become."""

from libc.stdint cimport uint8_t

cdef struct Segment:
    uint8_t *frame
    size_t transport  # where its TCP or UDP header begins
    size_t payload  # and what that carries
    size_t end  # without the padding of a short frame
    uint8_t protocol
    bint is_v6

cdef bint dissect(Segment *segment, uint8_t *frame, size_t size) noexcept
cdef bint is_intact(const Segment *segment) noexcept
cdef bint may_grow(const Segment *segment) noexcept
cdef bint goes_on(const Segment *first, const Segment *next, size_t step, size_t most) noexcept
cdef bint append(Segment *first, const Segment *next, size_t step) noexcept
cdef void seal(Segment *segment, size_t step, uint8_t *header) noexcept
