# cython: language_level=3
"""The headers of Ethernet, IP and TCP: where their fields are, and what is in them."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t

cdef enum:
    ETHERTYPE = 12  # where it is in a frame without VLAN tags
    IPV4 = 0x0800
    IPV6 = 0x86DD
    VLAN = 0x8100
    OUTER_VLAN = 0x88A8
    VLAN_TAG = 4  # bytes

cdef enum:  # places in an IPv4 header
    IPV4_LENGTH = 2  # of the whole packet
    IPV4_ID = 4
    IPV4_FRAGMENT = 6
    IPV4_PROTOCOL = 9
    IPV4_CHECKSUM = 10
    IPV4_ADDRESSES = 12
    IPV4_HEADER = 20  # bytes of it without options
    DONT_FRAGMENT = 0x4000

cdef enum:  # places in an IPv6 header
    IPV6_LENGTH = 4  # of what follows the header
    IPV6_PROTOCOL = 6
    IPV6_ADDRESSES = 8
    IPV6_HEADER = 40  # bytes of it without extensions

cdef enum:  # places in a TCP header
    TCP_SEQUENCE = 4
    TCP_ACKNOWLEDGED = 8
    TCP_OFFSET = 12
    TCP_FLAGS = 13
    TCP_WINDOW = 14
    TCP_CHECKSUM = 16
    TCP_HEADER = 20  # bytes of it without options
    UDP_LENGTH = 4
    UDP_CHECKSUM = 6
    UDP_HEADER = 8

cdef enum:  # protocols, and flags of TCP
    TCP = 6
    UDP = 17
    FIN = 0x01
    PSH = 0x08
    ACK = 0x10
    CWR = 0x80

cdef enum:  # struct virtio_net_hdr: places, flags and GSO types (virtio 1.3, 5.1.6)
    FLAGS_AT = 0
    GSO_TYPE_AT = 1
    HDR_LEN_AT = 2
    GSO_SIZE_AT = 4
    CSUM_START_AT = 6
    CSUM_OFFSET_AT = 8
    NEEDS_CSUM = 1
    DATA_VALID = 2
    GSO_NONE = 0
    GSO_TCPV4 = 1
    GSO_TCPV6 = 4
    GSO_ECN = 0x80


cdef inline uint16_t get16(const uint8_t *at) noexcept nogil:
    """A number in network byte order."""
    return <uint16_t> (at[0] << 8 | at[1])


cdef inline void set16(uint8_t *at, uint16_t number) noexcept nogil:
    at[0] = number >> 8
    at[1] = number & 0xFF


cdef inline uint32_t get32(const uint8_t *at) noexcept nogil:
    return <uint32_t> get16(at) << 16 | get16(at + 2)


cdef inline void set32(uint8_t *at, uint32_t number) noexcept nogil:
    set16(at, number >> 16)
    set16(at + 2, number & 0xFFFF)


cdef inline uint16_t get16_le(const uint8_t *at) noexcept nogil:
    """A number of a virtio header: little-endian."""
    return <uint16_t> (at[0] | at[1] << 8)


cdef inline void set16_le(uint8_t *at, uint16_t number) noexcept nogil:
    at[0] = number & 0xFF
    at[1] = number >> 8
