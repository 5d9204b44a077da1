# cython: language_level=3
"""What both directions know of frames and their headers."""


cdef enum:  # bytes
    SHORT_HEADER = 10  # struct virtio_net_hdr without num_buffers, of drivers before 1.0
    HEADER = 12
    NUM_BUFFERS_AT = 10
    LEAST_FRAME = 14  # an Ethernet header
    MOST_FRAME = 65535 + 14 + 8  # an IP packet, and two VLAN tags
