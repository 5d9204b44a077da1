# cython: language_level=3, embedsignature=True, auto_pickle=False, autotestdict=False
"""Merging of what is received: frames of one TCP connection, which follow each other, become one long packet.

So a guest goes through its network stack once for dozens of frames. The header says how much each frame carried
(virtio 1.3, 5.1.6.4), and the driver could cut the packet into the same frames again. Only frames are merged that
differ in nothing else than what that restores, and whose checksums are right.
"""

from libc.stdint cimport uint8_t, uint16_t
from libc.string cimport memcmp, memmove

from vhost_user_net.checksum cimport add_up, fold, write_checksum
from vhost_user_net.layers cimport (
    ACK, CSUM_OFFSET_AT, CSUM_START_AT, DONT_FRAGMENT, ETHERTYPE, FLAGS_AT, GSO_SIZE_AT, GSO_TCPV4, GSO_TCPV6,
    GSO_TYPE_AT, HDR_LEN_AT, IPV4, IPV4_ADDRESSES, IPV4_CHECKSUM, IPV4_FRAGMENT, IPV4_HEADER, IPV4_ID,
    IPV4_LENGTH, IPV4_PROTOCOL, IPV6, IPV6_ADDRESSES, IPV6_HEADER, IPV6_LENGTH, IPV6_PROTOCOL,
    NEEDS_CSUM, PSH, TCP, TCP_ACKNOWLEDGED, TCP_CHECKSUM, TCP_FLAGS, TCP_HEADER, TCP_OFFSET, TCP_SEQUENCE,
    TCP_WINDOW, UDP, UDP_CHECKSUM, UDP_HEADER, UDP_LENGTH, get16, get32, set16, set16_le,
)

cdef extern from "<arpa/inet.h>" nogil:
    uint16_t htons(uint16_t number)

cdef enum:
    NETWORK = ETHERTYPE + 2  # where IP begins; frames with VLAN tags stay as they are
    MOST_IP = 65535
    FRAGMENT = 0x3FFF  # its place, and whether more follow


cdef bint dissect(Segment *segment, uint8_t *frame, size_t size) noexcept:
    """Finds TCP or UDP in a frame; False if there is none, or it is a fragment."""
    cdef uint8_t *ip = frame + NETWORK
    cdef size_t left
    segment.frame = frame
    if size < NETWORK + IPV4_HEADER + UDP_HEADER:
        return False
    if get16(frame + ETHERTYPE) == IPV4 and ip[0] >> 4 == 4 and ip[0] & 0xF >= 5:
        segment.is_v6, segment.protocol = False, ip[IPV4_PROTOCOL]
        segment.transport = NETWORK + (ip[0] & 0xF) * 4
        segment.end = NETWORK + get16(ip + IPV4_LENGTH)
        if get16(ip + IPV4_FRAGMENT) & FRAGMENT:
            return False
    elif get16(frame + ETHERTYPE) == IPV6 and ip[0] >> 4 == 6:
        segment.is_v6, segment.protocol = True, ip[IPV6_PROTOCOL]
        segment.transport = NETWORK + IPV6_HEADER
        segment.end = segment.transport + get16(ip + IPV6_LENGTH)
    else:
        return False
    if segment.end > size or segment.end < segment.transport + UDP_HEADER:
        return False
    left = segment.end - segment.transport
    if segment.protocol == UDP:
        segment.payload = segment.transport + UDP_HEADER
        if get16(frame + segment.transport + UDP_LENGTH) != left:
            return False  # its checksum is of other bytes
        return get16(frame + segment.transport + UDP_CHECKSUM) != 0  # 0: it has none
    if segment.protocol != TCP or left < TCP_HEADER:
        return False
    segment.payload = segment.transport + (frame[segment.transport + TCP_OFFSET] >> 4) * 4
    return segment.transport + TCP_HEADER <= segment.payload <= segment.end


cdef uint16_t pseudo_header(const Segment *segment) noexcept:
    """The sum of the pseudo-header of TCP or UDP."""
    cdef const uint8_t *ip = segment.frame + NETWORK
    cdef uint16_t length = <uint16_t> (segment.end - segment.transport)
    cdef size_t total = <size_t> htons(length) + htons(segment.protocol)
    if segment.is_v6:
        return fold(add_up(ip + IPV6_ADDRESSES, 32, total))
    return fold(add_up(ip + IPV4_ADDRESSES, 8, total))


cdef bint is_intact(const Segment *segment) noexcept:
    """Whether the checksum is right, and IPv4's too: `seal` writes that anew."""
    cdef size_t length = segment.end - segment.transport
    if not segment.is_v6 and fold(add_up(segment.frame + NETWORK, segment.transport - NETWORK, 0)) != 0xFFFF:
        return False
    return fold(add_up(segment.frame + segment.transport, length, pseudo_header(segment))) == 0xFFFF


cdef bint may_grow(const Segment *segment) noexcept:
    """Whether others may be appended: it carries data, and has nothing that only some frames have."""
    cdef const uint8_t *tcp = segment.frame + segment.transport
    if segment.protocol != TCP or tcp[TCP_FLAGS] & ~PSH != ACK or segment.payload == segment.end:
        return False
    return segment.is_v6 or segment.transport == NETWORK + IPV4_HEADER


cdef bint goes_on(const Segment *first, const Segment *next, size_t step, size_t most) noexcept:
    """Whether a segment that may grow goes on where the first ends, each of whose frames carried `step` bytes.

    Both together may have so many bytes at most.
    """
    cdef const uint8_t *a = first.frame + first.transport
    cdef const uint8_t *b = next.frame + next.transport
    cdef size_t carried = first.end - first.payload
    if next.transport != first.transport or next.payload != first.payload or next.is_v6 != first.is_v6:
        return False
    if next.end - next.payload > step or a[TCP_FLAGS] & PSH:
        return False
    if first.end + next.end - next.payload > min(most, <size_t> (NETWORK + MOST_IP)):
        return False
    if get32(b + TCP_SEQUENCE) != <unsigned> (get32(a + TCP_SEQUENCE) + carried):
        return False
    return (
        memcmp(first.frame, next.frame, NETWORK) == 0
        and has_same_ip(first.frame + NETWORK, next.frame + NETWORK, first.is_v6, carried // step)
        and memcmp(a, b, TCP_SEQUENCE) == 0
        and memcmp(a + TCP_ACKNOWLEDGED, b + TCP_ACKNOWLEDGED, 5) == 0
        and memcmp(a + TCP_WINDOW, b + TCP_WINDOW, 2) == 0
        and memcmp(a + TCP_HEADER, b + TCP_HEADER, first.payload - first.transport - TCP_HEADER) == 0
    )


cdef bint has_same_ip(const uint8_t *a, const uint8_t *b, bint is_v6, size_t number) noexcept:
    """Whether an IP header is that of the frame so many behind the first: equal but for length, ID and checksum.

    Where frames may be fragmented, IPv4's ID counts them, or, of senders such as passt, is always the same.
    """
    cdef uint16_t jump
    if is_v6:
        return memcmp(a, b, IPV6_LENGTH) == 0 and memcmp(a + IPV6_PROTOCOL, b + IPV6_PROTOCOL, 34) == 0
    jump = get16(b + IPV4_ID) - get16(a + IPV4_ID)
    if jump and jump != number and not get16(a + IPV4_FRAGMENT) & DONT_FRAGMENT:
        return False
    return (
        memcmp(a, b, IPV4_LENGTH) == 0
        and memcmp(a + IPV4_FRAGMENT, b + IPV4_FRAGMENT, IPV4_CHECKSUM - IPV4_FRAGMENT) == 0
        and memcmp(a + IPV4_ADDRESSES, b + IPV4_ADDRESSES, 8) == 0
    )


cdef bint append(Segment *first, const Segment *next, size_t step) noexcept:
    """Moves what the next segment carries behind the first one's; whether more may follow.

    The next lies behind the first in memory. Its headers are overwritten.
    """
    cdef size_t carried = next.end - next.payload
    first.frame[first.transport + TCP_FLAGS] |= next.frame[next.transport + TCP_FLAGS]
    memmove(first.frame + first.end, next.frame + next.payload, carried)
    first.end += carried
    return carried == step


cdef void seal(Segment *segment, size_t step, uint8_t *header) noexcept:
    """Makes one packet of what was appended, and says so in its header: the driver need not check it."""
    cdef uint8_t *ip = segment.frame + NETWORK
    cdef uint16_t pseudo
    if segment.is_v6:
        set16(ip + IPV6_LENGTH, <uint16_t> (segment.end - segment.transport))
    else:
        set16(ip + IPV4_LENGTH, <uint16_t> (segment.end - NETWORK))
        set16(ip + IPV4_CHECKSUM, 0)
        write_checksum(ip, IPV4_HEADER, IPV4_CHECKSUM)
    pseudo = pseudo_header(segment)
    memmove(segment.frame + segment.transport + TCP_CHECKSUM, &pseudo, sizeof(pseudo))
    header[FLAGS_AT] = NEEDS_CSUM
    header[GSO_TYPE_AT] = GSO_TCPV6 if segment.is_v6 else GSO_TCPV4
    set16_le(header + HDR_LEN_AT, <uint16_t> segment.payload)
    set16_le(header + GSO_SIZE_AT, <uint16_t> step)
    set16_le(header + CSUM_START_AT, <uint16_t> segment.transport)
    set16_le(header + CSUM_OFFSET_AT, TCP_CHECKSUM)
