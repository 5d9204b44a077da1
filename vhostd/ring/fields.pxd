# cython: language_level=3
"""How the fields of an inflight area are read and written."""

from libc.stdint cimport uint8_t, uint16_t, uint64_t

cdef extern from "barriers.h" nogil:
    uint8_t load_u8(const void *at)
    uint16_t load_u16(const void *at)
    uint64_t load_u64(const void *at)
    void store_u16(void *at, uint16_t value)
    void store_u64(void *at, uint64_t value)
    void store_release_u8(void *at, uint8_t value)
    void store_release_u16(void *at, uint16_t value)
