"""Eeprom: a 24C02 on an I2C bus, as a virtio device (virtio 1.3, "I2C Adapter Device")."""

import argparse
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from vhostd import BadRequest, Chain, Device, DeviceType, Handler, SetupError, Unpacker, Virtqueue

ZERO_LENGTH_REQUEST = 0  # a feature: requests without data, which ask whether anybody has that address
OUT_HEADER = struct.Struct("<HHI")  # struct virtio_i2c_out_hdr: address, padding, flags
FAIL_NEXT, READ = 1, 2  # flags
OK, ERROR = b"\0", b"\1"  # struct virtio_i2c_in_hdr: the status
MOST = 8192  # bytes of one transfer, as in Linux
SIZE, PAGE = 256, 8  # bytes of a 24C02; a write stays within its page


class Eeprom(Device):
    """an I2C bus with an EEPROM, a 24C02"""

    kind = DeviceType.I2C_ADAPTER
    features = 1 << ZERO_LENGTH_REQUEST

    def __init__(self, address: int, contents: bytes) -> None:
        self._address = address
        self._cells = bytearray(contents.ljust(SIZE, b"\xff"))
        self._next = 0  # the cell that is read or written next

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument_group("EEPROM").add_argument
        add("--address", metavar="ADDR", type=_address, default=0x50, help="0x50 to 0x57; default: 0x50")
        add("--contents", metavar="FILE", help="what is in it at first, up to 256 bytes; default: 0xff")

    @classmethod
    def from_options(cls, options: argparse.Namespace) -> Self:
        return cls(options.address, b"" if options.contents is None else _contents(options.contents))

    @property
    def queues(self) -> Sequence[Handler]:
        return [self.requestq]

    async def requestq(self, queue: Virtqueue) -> None:
        """Transfers, one after another; after one that fails, the rest of its group fails too."""
        failed = False
        async for chain in queue:
            address, _, flags = OUT_HEADER.unpack(chain.read(OUT_HEADER.size))
            count = chain.writable - len(OK)
            if count < 0 or max(chain.readable, count) > MOST:
                raise BadRequest(f"a transfer of {chain.readable} bytes to write and {count} to read")
            failed = failed or address != self._address << 1  # bit 0 of it is not used
            if flags & READ:
                chain.write(bytes(count) if failed else self._read(count))
            elif not failed:
                self._write(chain)
            chain.write(ERROR if failed else OK)
            failed = failed and bool(flags & FAIL_NEXT)
            queue.push(chain)

    def save(self) -> bytes:
        """The cells, and the one that is next."""
        return bytes(self._cells) + bytes([self._next])

    def load(self, state: bytes, version: int) -> None:
        """Goes on with the cells of another program, whose guest has come here."""
        unpacker = Unpacker(state)
        cells, (place,) = unpacker.take(SIZE), unpacker.take(1)
        unpacker.end()
        self._cells, self._next = bytearray(cells), place

    def _read(self, count: int) -> bytes:
        """The next cells; behind the last one is the first."""
        data = bytes(self._cells[(self._next + place) % SIZE] for place in range(count))
        self._next = (self._next + count) % SIZE
        return data

    def _write(self, chain: Chain) -> None:
        """The first byte chooses the next cell; all others are put into the cells of its page."""
        for place, byte in enumerate(chain.read(chain.readable)):
            if place:
                self._cells[self._next] = byte
                self._next = self._next & -PAGE | (self._next + 1) % PAGE
            else:
                self._next = byte


def _address(text: str) -> int:
    if text not in [f"{address:#x}" for address in range(0x50, 0x58)]:
        raise argparse.ArgumentTypeError(f"{text!r} is not an address from 0x50 to 0x57")
    return int(text, 16)


def _contents(path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            contents = file.read(SIZE + 1)
    except OSError as error:
        raise SetupError(f"--contents={path}: {error.strerror}") from None
    if len(contents) > SIZE:
        raise SetupError(f"--contents={path}: more than {SIZE} bytes")
    return contents
