"""Requests of devices, roughly right: what a driver writes, and how much room it leaves for the answer.

The device is a stranger. So a case has requests of all types, unless the type is known.
"""

import struct
from collections.abc import Callable
from random import Random

Request = tuple[bytes, int]
SECTOR = 512


def _word(random: Random) -> int:
    """A small number, most of the time."""
    return random.getrandbits(32) if random.random() < 0.1 else random.randrange(random.choice((3, 20, 300)))


def block(random: Random) -> Request:
    kind = random.choice((0, 0, 0, 1, 1, 1, 4, 8, 11, 13, 14, random.randrange(32)))
    size = SECTOR * random.choice((0, 1, 1, 2, 8, 9))
    sector = random.choice((0, 1, 7, 8, _word(random), random.getrandbits(64)))
    head = struct.pack("<IIQ", kind, 0, sector)
    if kind in (1, 11, 13, 14):
        ranges = struct.pack("<QII", sector, _word(random), random.randrange(4)) * random.randrange(4)
        return head + (bytes(size) if kind == 1 else ranges), 1
    return head, (20 if kind == 8 else size) + 1


def gpu(random: Random) -> Request:
    kind = random.choice((*range(0x100, 0x110), 0x300, 0x301))
    head = struct.pack("<IIQII", kind, random.randrange(4), random.getrandbits(16), 0, 0)
    words = [random.randrange(1, 4), *(_word(random) for _ in range(12))]
    if kind == 0x101:
        words[1:4] = 1, random.choice((1, 16, 64, _word(random))), random.choice((1, 16, 64, _word(random)))
    if kind in (0x106, 0x10C):
        entries = random.randrange(4)
        place = struct.pack(
            "<QII", 0x1004_0000 + 4096 * random.randrange(128), random.choice((4096, 16384)), 0
        )
        return head + struct.pack("<II", words[0], entries) + place * entries, 24
    return head + struct.pack(f"<{len(words)}I", *words), random.choice((24, 408, 1056))


def input(random: Random) -> Request:
    if random.random() < 0.5:
        return b"", 8
    return struct.pack(
        "<HHi", random.choice((0, 1, 2, 0x11, 0x12)), _word(random) & 0xFFFF, _word(random) >> 1
    ), 0


def entropy(random: Random) -> Request:
    return b"", random.choice((1, 64, 4096, 65536))


def filesystem(random: Random) -> Request:
    body = random.randbytes(random.choice((8, 16, 40, 64))) if random.random() < 0.3 else bytes(64)
    kind = random.choice((26, 26, 1, 3, 14, 15, 16, 18, 25, 27, 28, 35, 44, random.randrange(60)))
    if kind == 26:
        body = struct.pack("<IIII", 7, 38, 1 << 17, _word(random)) + bytes(48)
    head = struct.pack("<IIQQIIII", 40 + len(body), kind, random.getrandbits(32), _word(random), 0, 0, 0, 0)
    return head + body, random.choice((16, 80, 160, 4096))


def network(random: Random) -> Request:
    return bytes(12) + random.randbytes(random.choice((14, 60, 1500))), random.choice((0, 0, 1526))


def vsock(random: Random) -> Request:
    head = struct.pack("<QQII", 3, 2, 1024 + random.randrange(4), _word(random))
    size = random.choice((0, 16, _word(random)))
    rest = struct.pack("<IHHIII", size, 1, random.randrange(9), 0, 4096, _word(random))
    return head + rest + bytes(min(size, 256)), random.choice((0, 4096))


def scsi(random: Random) -> Request:
    head = bytes((1, 0, 0x40, random.randrange(4), 0, 0, 0, 0)) + struct.pack(
        "<QBBB", random.getrandbits(16), 0, 0, 0
    )
    return head + bytes((random.choice((0, 0x12, 0x25, 0x28, 0x2A, 0xA0)),)) + bytes(31), 108 + 512


def console(random: Random) -> Request:
    message = struct.pack(
        "<IHH", random.choice((0, 1, _word(random))), random.randrange(10), random.randrange(3)
    )
    return message + bytes(random.choice((0, 0, 4, 4096))), random.choice((0, 8, 4096))


TYPES: dict[str, Callable[[Random], Request]] = {
    "block": block,
    "gpu": gpu,
    "input": input,
    "rng": entropy,
    "fs": filesystem,
    "net": network,
    "vsock": vsock,
    "console": console,
    "scsi": scsi,
}
