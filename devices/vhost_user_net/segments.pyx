# cython: language_level=3, embedsignature=True, auto_pickle=False, autotestdict=False
"""Segmentation (TSO): a long TCP packet of the driver becomes the frames that the network takes.

The driver says in the packet's header how much each frame may carry (virtio 1.3, 5.1.6.2), and has written the sum of
the pseudo-header where the checksum belongs.
"""

from libc.stdint cimport uint8_t, uint16_t
from libc.string cimport memcpy

from vhost_user_net.checksum cimport fold, write_checksum
from vhost_user_net.layers cimport (
    CSUM_OFFSET_AT, CSUM_START_AT, CWR, ETHERTYPE, FIN, FLAGS_AT, GSO_ECN, GSO_SIZE_AT, GSO_TCPV4, GSO_TCPV6,
    GSO_TYPE_AT, IPV4, IPV4_CHECKSUM, IPV4_HEADER, IPV4_ID, IPV4_LENGTH, IPV6, IPV6_HEADER, IPV6_LENGTH,
    NEEDS_CSUM, OUTER_VLAN, PSH, TCP_CHECKSUM, TCP_FLAGS, TCP_HEADER, TCP_OFFSET, TCP_SEQUENCE, VLAN,
    VLAN_TAG, get16, get16_le, get32, set16, set32,
)

cdef enum:
    LEAST_STEP = 48  # Linux' TCP_MIN_SND_MSS; with less, a packet would become very many frames
    MOST_TCP_HEADER = 60
    MOST_VLAN_TAGS = 2


cdef size_t most_frames(const uint8_t *header, size_t size) noexcept:
    """How many frames a packet of so many bytes becomes at most."""
    return 1 + size // max(get16_le(header + GSO_SIZE_AT), <uint16_t> LEAST_STEP)


cdef size_t most_headers(const uint8_t *header) noexcept:
    """How many bytes each of them has at most, beside what it carries."""
    return get16_le(header + CSUM_START_AT) + <size_t> MOST_TCP_HEADER


cdef bint plan(Cut *cut, const uint8_t *header, const uint8_t *packet, size_t size) noexcept:
    """Finds out how to cut a packet; False if it is not what its header says."""
    cdef size_t step = get16_le(header + GSO_SIZE_AT)
    cdef size_t transport = get16_le(header + CSUM_START_AT)
    cdef size_t network = ETHERTYPE + 2
    cdef int tag
    if not header[FLAGS_AT] & NEEDS_CSUM or get16_le(header + CSUM_OFFSET_AT) != TCP_CHECKSUM or step < LEAST_STEP:
        return False
    if transport < network + IPV4_HEADER or transport + TCP_HEADER > size:
        return False
    for tag in range(MOST_VLAN_TAGS):
        if get16(packet + network - 2) in (VLAN, OUTER_VLAN):
            network += VLAN_TAG
    if not is_of(header[GSO_TYPE_AT] & ~GSO_ECN, get16(packet + network - 2), packet + network, transport, network):
        return False
    cut.packet, cut.size, cut.step, cut.network, cut.transport = packet, size, step, network, transport
    cut.payload = transport + (packet[transport + TCP_OFFSET] >> 4) * 4
    if cut.payload < transport + TCP_HEADER or cut.payload > size:
        return False
    cut.frames = max(<size_t> 1, (size - cut.payload + step - 1) // step)
    return True


cdef bint is_of(uint8_t gso_type, uint16_t ethertype, const uint8_t *ip, size_t transport, size_t network) noexcept:
    """Whether there is an IP header of this type in front of the TCP header."""
    if gso_type == GSO_TCPV4:
        return ethertype == IPV4 and transport >= network + IPV4_HEADER and network + (ip[0] & 0xF) * 4 == transport
    return gso_type == GSO_TCPV6 and ethertype == IPV6 and transport >= network + IPV6_HEADER


cdef size_t cut_out(const Cut *cut, size_t number, uint8_t *into) noexcept:
    """Writes the frame of this number, from 0 on; returns its size."""
    cdef size_t begin = number * cut.step
    cdef size_t carried = min(cut.step, cut.size - cut.payload - begin)
    cdef size_t size = cut.payload + carried
    memcpy(into, cut.packet, cut.payload)
    memcpy(into + cut.payload, cut.packet + cut.payload + begin, carried)
    set_ip(cut, number, into + cut.network, size - cut.network)
    set_tcp(cut, number, into + cut.transport, size - cut.transport)
    return size


cdef void set_ip(const Cut *cut, size_t number, uint8_t *ip, size_t length) noexcept:
    if ip[0] >> 4 == 4:
        set16(ip + IPV4_LENGTH, <uint16_t> length)
        set16(ip + IPV4_ID, <uint16_t> (get16(ip + IPV4_ID) + number))
        set16(ip + IPV4_CHECKSUM, 0)
        write_checksum(ip, cut.transport - cut.network, IPV4_CHECKSUM)
    else:
        set16(ip + IPV6_LENGTH, <uint16_t> (length - IPV6_HEADER))


cdef void set_tcp(const Cut *cut, size_t number, uint8_t *tcp, size_t length) noexcept:
    cdef uint16_t pseudo
    if number:
        tcp[TCP_FLAGS] &= <uint8_t> ~CWR
    if number + 1 < cut.frames:
        tcp[TCP_FLAGS] &= <uint8_t> ~(FIN | PSH)
    set32(tcp + TCP_SEQUENCE, <unsigned> (get32(tcp + TCP_SEQUENCE) + number * cut.step))
    # The pseudo-header has the length of the whole packet: that goes out of the sum, and the frame's comes in.
    pseudo = fold(get16(tcp + TCP_CHECKSUM) + (0xFFFF ^ <uint16_t> (cut.size - cut.transport)) + length)
    set16(tcp + TCP_CHECKSUM, pseudo)
    write_checksum(tcp, length, TCP_CHECKSUM)
