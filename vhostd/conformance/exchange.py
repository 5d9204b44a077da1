"""One valid request for each type of device: what a check sends that has to see a ring work.

Each is the smallest that a driver of that type sends, and changes nothing behind the device.
"""

import struct
from collections.abc import Callable
from typing import NamedTuple

BLOCK_GET_ID = struct.pack("<IIQ", 8, 0, 0)  # virtio 1.3, 5.2.6
GPU_GET_DISPLAY_INFO = struct.pack("<IIQIB3x", 0x100, 0, 0, 0, 0)  # 5.7.6.7
INPUT_LED = struct.pack("<HHi", 17, 0, 0)  # 5.8.6: EV_LED, LED_NUML, off
NET_HEADER = bytes(12)  # 5.1.6
ARP = bytes.fromhex("ffffffffffff5254000000010806") + bytes(46)
VSOCK_HEADER = struct.pack("<QQIIIHHIII", 3, 2, 1, 1, 0, 1, 3, 0, 0, 0)  # 5.10.6: RST of nobody's connection
FUSE_INIT = struct.pack("<IIQQIIIHHIIII", 56, 26, 1, 0, 0, 0, 0, 0, 0, 7, 38, 0, 0)  # 5.11.6
SOUND_JACK_INFO = struct.pack("<IIII", 1, 0, 0, 24)  # 5.14.6: of no jack at all
I2C_READ = struct.pack("<HHI", 0x3A << 1, 0, 2)  # 5.16.6: a read from nobody's address
GPIO_GET_DIRECTION = struct.pack("<HHI", 2, 0, 0)  # 5.18.6
SCMI_VERSION = struct.pack("<I", 0x10 << 10)  # 5.17.6: PROTOCOL_VERSION of the base protocol


class Exchange(NamedTuple):
    """What is sent on which queue, and what a good answer is."""

    queue: int
    request: bytes
    room: int  # bytes for the answer; 0 if the device only reads
    good: Callable[[bytes], bool]
    queues: int = 1  # how many must run for it, from the first on
    status: int = 0  # bytes at the end of the answer for which drivers take a descriptor of their own

    @property
    def descriptors(self) -> int:
        """How many a driver takes."""
        return bool(self.request) + bool(self.room) + bool(self.status)


def _of_size(size: int) -> Callable[[bytes], bool]:
    return lambda answer: len(answer) == size


EXCHANGES = {
    "block": Exchange(0, BLOCK_GET_ID, 21, lambda answer: answer[-1:] == b"\0", status=1),
    "console": Exchange(1, b"\r\n", 0, _of_size(0), queues=2),  # two bytes, which can be in two pieces
    "fs": Exchange(1, FUSE_INIT, 256, lambda answer: len(answer) >= 16, queues=2),
    "gpio": Exchange(0, GPIO_GET_DIRECTION, 2, _of_size(2)),
    "gpu": Exchange(0, GPU_GET_DISPLAY_INFO, 408, lambda answer: answer[:2] == b"\x01\x11", queues=2),
    "i2c-adapter": Exchange(0, I2C_READ, 1, _of_size(1)),
    "input": Exchange(1, INPUT_LED, 0, _of_size(0), queues=2),
    "net": Exchange(1, NET_HEADER + ARP, 0, _of_size(0), queues=2),
    "rng": Exchange(0, b"", 64, lambda answer: len(answer) > 0),
    "scmi": Exchange(0, SCMI_VERSION, 12, lambda answer: len(answer) >= 8, queues=1),
    "sound": Exchange(0, SOUND_JACK_INFO, 4, lambda answer: len(answer) >= 4, queues=4),
    "vsock": Exchange(1, VSOCK_HEADER, 0, _of_size(0), queues=2),
}
