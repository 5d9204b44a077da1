# cython: language_level=3
"""The Internet checksum (RFC 1071), of words in the machine's own byte order, as the field is read and written."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from vhost_user_net.layers cimport IPV4_CHECKSUM


cdef inline uint64_t add_up(const uint8_t *data, size_t size, uint64_t total) noexcept nogil:
    """Adds bytes, the first of which begins a word, to a sum."""
    cdef uint32_t words[4]
    cdef uint16_t last = 0
    while size >= sizeof(words):
        memcpy(words, data, sizeof(words))
        total += <uint64_t> words[0] + words[1] + words[2] + words[3]
        data += sizeof(words)
        size -= sizeof(words)
    while size >= 2:
        memcpy(&last, data, 2)
        total += last
        data += 2
        size -= 2
    if size:
        last = 0
        memcpy(&last, data, 1)
        total += last
    return total


cdef inline uint16_t fold(uint64_t total) noexcept nogil:
    """A sum as one word, with what was carried."""
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return <uint16_t> total


cdef inline void write_checksum(uint8_t *data, size_t size, size_t at) noexcept nogil:
    """Writes the checksum of these bytes, at a place in them; what is there counts, as of a pseudo-header."""
    cdef uint16_t checksum = ~fold(add_up(data, size, 0))
    if not checksum and at != IPV4_CHECKSUM:
        checksum = 0xFFFF  # the same number; and UDP has 0 for none
    memcpy(data + at, &checksum, 2)
