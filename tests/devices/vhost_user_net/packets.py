"""Frames of TCP and UDP, with all that offloads look at; made and cut without the program's code."""

import ipaddress
import struct
from dataclasses import dataclass, replace

from vhostd.frontend.drivers.net import GSO_TCPV4, GSO_TCPV6, NEEDS_CSUM, Header

FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = (1 << bit for bit in range(8))
TCP, UDP = 6, 17
CHECKSUM_AT = {TCP: 16, UDP: 6}
DONT_FRAGMENT = 0x4000


def total(data: bytes) -> int:
    """The sum of 16-bit words, folded (RFC 1071)."""
    words = struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2))
    found: int = sum(words)
    while found >> 16:
        found = (found & 0xFFFF) + (found >> 16)
    return found


@dataclass(frozen=True)
class Packet:
    """A frame with TCP or UDP, or what will be several of them."""

    payload: bytes = b""
    v6: bool = False
    protocol: int = TCP
    seq: int = 1000
    ack: int = 7
    flags: int = ACK
    window: int = 500
    urgent: int = 0
    options: bytes = b""
    ports: tuple[int, int] = (1000, 2000)
    source: int = 1  # the last number of its address
    ident: int = 100
    fragment: int = DONT_FRAGMENT
    ttl: int = 64
    tos: int = 0
    ip_options: bytes = b""
    ethernet: bytes = bytes(range(12))
    vlan: bytes = b""
    partial: bool = False  # the checksum is the sum of the pseudo-header alone
    corrupt: bool = False

    @property
    def transport(self) -> int:
        """Where the TCP or UDP header begins."""
        return len(self.ethernet) + len(self.vlan) + 2 + (40 if self.v6 else 20 + len(self.ip_options))

    @property
    def headers(self) -> int:
        """Where the payload begins."""
        return self.transport + (20 + len(self.options) if self.protocol == TCP else 8)

    @property
    def addresses(self) -> bytes:
        """Source and destination."""
        if self.v6:
            return (
                ipaddress.ip_address(f"fd00::{self.source}").packed + ipaddress.ip_address("fd00::9").packed
            )
        return bytes((10, 0, 0, self.source, 10, 0, 0, 9))

    def frame(self) -> bytes:
        """All of it."""
        kind = 0x86DD if self.v6 else 0x0800
        return self.ethernet + self.vlan + struct.pack("!H", kind) + self._ip() + self._segment()

    def header(self, step: int) -> Header:
        """What asks for it to be cut into frames that carry so much; without, for its checksum alone."""
        kind = 0 if not step else GSO_TCPV6 if self.v6 else GSO_TCPV4
        return Header(NEEDS_CSUM, kind, self.headers, step, self.transport, CHECKSUM_AT[self.protocol])

    def frames(self, step: int) -> list[bytes]:
        """What it becomes when it is cut."""
        begins = range(0, max(len(self.payload), 1), step)
        return [self._piece(number, begin, step).frame() for number, begin in enumerate(begins)]

    def _piece(self, number: int, begin: int, step: int) -> "Packet":
        is_last = begin + step >= len(self.payload)
        flags = self.flags & ~(CWR if number else 0) & ~(0 if is_last else FIN | PSH)
        return replace(
            self,
            payload=self.payload[begin : begin + step],
            seq=(self.seq + begin) % 2**32,
            ident=(self.ident + number) % 2**16,
            flags=flags,
            partial=False,
        )

    def _ip(self) -> bytes:
        length = self.headers - self.transport + len(self.payload)
        if self.v6:
            first = 6 << 28 | self.tos << 20
            return struct.pack("!IHBB", first, length % 2**16, self.protocol, self.ttl) + self.addresses
        words = 5 + len(self.ip_options) // 4
        fields = (0x40 | words, self.tos, (words * 4 + length) % 2**16, self.ident, self.fragment, self.ttl)
        ip = struct.pack("!BBHHHBBH", *fields, self.protocol, 0) + self.addresses + self.ip_options
        return ip[:10] + struct.pack("!H", 0xFFFF ^ total(ip)) + ip[12:]

    def _segment(self) -> bytes:
        length = self.headers - self.transport + len(self.payload)
        pseudo = self.addresses + struct.pack("!II", length, self.protocol)
        if self.protocol == TCP:
            offset = (5 + len(self.options) // 4) << 4
            fields = (*self.ports, self.seq, self.ack, offset, self.flags, self.window, 0, self.urgent)
            header = struct.pack("!HHIIBBHHH", *fields) + self.options
        else:
            header = struct.pack("!HHHH", *self.ports, length, 0)
        checksum = total(pseudo) if self.partial else 0xFFFF ^ total(pseudo + header + self.payload) or 0xFFFF
        at = CHECKSUM_AT[self.protocol]
        packed = struct.pack("!H", checksum ^ self.corrupt)
        return header[:at] + packed + header[at + 2 :] + self.payload
