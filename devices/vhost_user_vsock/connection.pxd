# cython: language_level=3
"""A connection's numbers, as `traffic` counts them."""

from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t


cdef packed struct Header:  # struct virtio_vsock_hdr
    uint64_t src_cid
    uint64_t dst_cid
    uint32_t src_port
    uint32_t dst_port
    uint32_t len
    uint16_t type
    uint16_t op
    uint32_t flags
    uint32_t buf_alloc
    uint32_t fwd_cnt


cdef class Connection:
    cdef readonly uint64_t guest_cid
    cdef readonly uint64_t host_cid
    cdef readonly uint32_t guest_port
    cdef readonly uint32_t host_port
    cdef readonly uint16_t kind
    cdef public object sock
    cdef readonly bint is_call
    cdef readonly bint detached
    cdef readonly bint established
    cdef public unsigned told
    cdef public unsigned heard
    cdef readonly bint deaf
    cdef int fd
    cdef unsigned wants
    cdef bint speaks
    cdef bint is_ready
    cdef bint is_partial
    cdef int inward
    cdef int outward
    cdef uint32_t buf_alloc
    cdef uint32_t received
    cdef uint32_t forwarded
    cdef uint32_t announced
    cdef uint32_t sent
    cdef uint32_t peer_buf_alloc
    cdef uint32_t peer_fwd_cnt
    cdef bint asked
    cdef bytearray pending
    cdef bytearray fragments
    cdef bytes message
    cdef size_t at
    cdef uint32_t message_flags

    cdef void hear(self, Header *header) noexcept
    cdef size_t credit(self) noexcept
    cdef bint accept(self, uint32_t size) noexcept
    cdef void forward(self, uint32_t size) noexcept
    cdef bint owes_credit(self) noexcept
    cdef void fill(self, Header *header, uint16_t op, uint32_t size, uint32_t flags) noexcept
