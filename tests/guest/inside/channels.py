"""`python channels.py INTERFACE N`: has a network card use so many pairs of queues, as `ethtool -L` does."""

import array
import fcntl
import socket
import struct
import sys

# Linux, include/uapi/linux/{sockios,ethtool}.h
SIOCETHTOOL = 0x8946
ETHTOOL_GCHANNELS, ETHTOOL_SCHANNELS = 0x3C, 0x3D
CHANNELS = struct.Struct("=9I")  # struct ethtool_channels
COMBINED = 8  # the index of combined_count in it


def main() -> None:
    """Prints how many there are then."""
    interface, count = sys.argv[1], int(sys.argv[2])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:

        def ask(*channels: int) -> tuple[int, ...]:
            data = array.array("B", CHANNELS.pack(*channels))
            fcntl.ioctl(sock, SIOCETHTOOL, struct.pack("16sP16x", interface.encode(), data.buffer_info()[0]))
            return CHANNELS.unpack(data)

        channels = list(ask(ETHTOOL_GCHANNELS, *[0] * 8))
        channels[0], channels[COMBINED] = ETHTOOL_SCHANNELS, count
        ask(*channels)
        print(ask(ETHTOOL_GCHANNELS, *[0] * 8)[COMBINED])


if __name__ == "__main__":
    main()
