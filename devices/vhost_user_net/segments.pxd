# cython: language_level=3
"""A packet that is longer than frames may be, and the frames that it is cut into."""

from libc.stdint cimport uint8_t, uint16_t

cdef struct Cut:
    const uint8_t *packet  # a frame but for its length
    size_t network  # where its IP header begins
    size_t transport  # and its TCP header
    size_t payload  # and what that carries
    size_t size
    size_t step  # bytes of payload in each frame
    size_t frames  # how many there are

cdef size_t most_frames(const uint8_t *header, size_t size) noexcept
cdef size_t most_headers(const uint8_t *header) noexcept
cdef bint plan(Cut *cut, const uint8_t *header, const uint8_t *packet, size_t size) noexcept
cdef size_t cut_out(const Cut *cut, size_t number, uint8_t *into) noexcept
