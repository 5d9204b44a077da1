"""Net: the network card as a device."""

import argparse
import struct
from collections.abc import Mapping, Sequence
from typing import Self

from vhost_user_net import MANIFEST
from vhost_user_net.features import VERSION_1, Feature, mask
from vhost_user_net.netdev import Netdev
from vhost_user_net.tap import Tap
from vhost_user_net.unix_sockets import Datagrams, Stream
from vhostd import (
    U64,
    Call,
    Device,
    DeviceType,
    Grants,
    Handler,
    RefusedRequest,
    UsageError,
    Virtqueue,
    answer,
)
from vhostd.vhost_user.messages import NET_SET_MTU, SEND_RARP, ProtocolFeature

MOST_PAIRS = 128
LEAST_MTU, MOST_MTU = 68, 65535
CONFIG = struct.Struct("<6sHHH")  # struct virtio_net_config: mac, status, max_virtqueue_pairs, mtu
LINK_UP = 1  # of its status
MAC_SIZE = 6
# An Ethernet frame that asks for one's own address (RFC 903), for switches to learn where that is now.
RARP = struct.Struct("!6s6sHHHBBH6s4s6s4s18x")
BROADCAST = b"\xff" * MAC_SIZE
ETH_P_RARP, ARPHRD_ETHER, ETH_P_IP, REVERSE_REQUEST = 0x8035, 1, 0x0800, 3


class Net(Device):
    """a network card for the guest: a tap device, passt, or another guest (virtio-net)"""

    kind = DeviceType.of(MANIFEST.type)
    protocol_features = 1 << ProtocolFeature.MTU | 1 << ProtocolFeature.RARP

    def __init__(self, netdev: Netdev, *, mac: bytes | None = None, mtu: int | None = None) -> None:
        """Owns the netdev. `mac` and `mtu` are for front-ends that leave them to the device, unlike QEMU."""
        self._netdev = netdev
        self._mac = mac
        self._mtu = mtu
        self._pair_count = len(netdev.pairs)
        self.features = netdev.features | mask(Feature.MRG_RXBUF) | VERSION_1
        if self._pair_count > 1:
            self.features |= mask(Feature.MQ)
        if mac is not None:
            self.features |= mask(Feature.MAC)
        if mtu is not None:
            self.features |= mask(Feature.MTU)
        if self._has_config:
            self.features |= mask(Feature.STATUS)
            netdev.changed = self.config_changed

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        """Adds where the card leads to, and what it says of itself."""
        group = parser.add_argument_group("network")
        add = group.add_mutually_exclusive_group(required=True).add_argument
        add("--tap", metavar="NAME", help="a tap device; who may make one need not have made it before")
        add(
            "--tap-fd",
            metavar="N",
            type=int,
            action="append",
            help="an fd of a tap device, opened with vnet_hdr; once for each queue pair",
        )
        add(
            "--stream",
            metavar="PATH",
            help="a unix socket that passt, a switch or QEMU's stream netdev listens at",
        )
        add("--dgram", metavar="PATH", help="a unix datagram socket, of QEMU's dgram netdev or another card")
        add = group.add_argument
        add("--dgram-local", metavar="PATH", help="the datagram socket to receive at, which is made")
        add(
            "--queue-pairs",
            metavar="N",
            type=_pairs,
            help="of a tap device; default: 1, or the number of fds",
        )
        add("--mac", type=_mac, help="the card's address, for front-ends that give it none; QEMU does")
        add(
            "--mtu",
            metavar="N",
            type=_mtu,
            help="the card's MTU, for front-ends that give it none; QEMU does",
        )

    @classmethod
    def from_options(cls, options: argparse.Namespace) -> Self:
        """Opens what the card leads to; raises SetupError, and UsageError for options that contradict."""
        return cls(_open(options), mac=options.mac, mtu=options.mtu)

    def grants(self) -> Grants:
        """What its netdev needs."""
        return self._netdev.grants()

    @property
    def queues(self) -> Sequence[Handler]:
        """A receiveq and a transmitq for each pair (5.1.2). QEMU serves the control queue itself.

        GET_QUEUE_NUM tells all of them, as the specification has it: User-mode Linux counts so. QEMU takes
        them for pairs.
        """
        return [handler for pair in range(self._pair_count) for handler in (self.receiveq, self.transmitq)]

    async def receiveq(self, queue: Virtqueue) -> None:
        """Gives the driver packets."""
        self._netdev.negotiate(self.negotiated)
        await self._netdev.pairs[queue.index // 2].receiveq(queue)

    async def transmitq(self, queue: Virtqueue) -> None:
        """Takes packets of the driver."""
        self._netdev.negotiate(self.negotiated)
        await self._netdev.pairs[queue.index // 2].transmitq(queue)

    @property
    def calls(self) -> Sequence[Call]:
        """NET_SET_MTU and SEND_RARP."""
        return [answer(NET_SET_MTU, self._set_mtu), answer(SEND_RARP, self._send_rarp)]

    def read_config(self) -> bytes:
        """The config space, if it is ours to give: with --mac or --mtu."""
        if not self._has_config:
            return b""
        return CONFIG.pack(
            self._mac or bytes(MAC_SIZE),
            LINK_UP if self._netdev.is_open else 0,
            self._pair_count,
            self._mtu or 0,
        )

    def counts(self) -> Mapping[str, int]:
        """Packets in both directions, of all pairs."""
        sent = [pair.transmit for pair in self._netdev.pairs]
        received = [pair.receive for pair in self._netdev.pairs]
        return {
            "transmit_packets": sum(each.packets for each in sent),
            "transmit_bytes": sum(each.octets for each in sent),
            "transmit_dropped": sum(each.dropped for each in sent),
            "receive_packets": sum(each.packets for each in received),
            "receive_bytes": sum(each.octets for each in received),
            "receive_dropped": sum(each.dropped for each in received),
        }

    async def run(self) -> None:
        """Opens what the card leads to again when it was lost."""
        await self._netdev.run()

    def close(self) -> None:
        """Closes what it leads to."""
        self._netdev.end()

    @property
    def _has_config(self) -> bool:
        return self._mac is not None or self._mtu is not None

    def _set_mtu(self, mtu: U64) -> None:
        """Takes QEMU's MTU. The host's interface has its own."""
        if not LEAST_MTU <= mtu.value <= MOST_MTU:
            raise RefusedRequest(f"an MTU of {mtu.value}: it is from {LEAST_MTU} to {MOST_MTU}")

    def _send_rarp(self, address: U64) -> None:
        """Tells the network where the guest is now; 6 bytes of the payload are its address."""
        mac = address.value.to_bytes(8, "little")[:MAC_SIZE]
        self._netdev.pairs[0].transmit.send(rarp(mac))


def rarp(mac: bytes) -> bytes:
    """A frame by which switches learn where an address is."""
    kind = (ARPHRD_ETHER, ETH_P_IP, MAC_SIZE, 4, REVERSE_REQUEST)
    return RARP.pack(BROADCAST, mac, ETH_P_RARP, *kind, mac, bytes(4), mac, bytes(4))


def _open(options: argparse.Namespace) -> Netdev:
    pairs = options.queue_pairs
    if options.dgram_local is not None and options.dgram is None:
        raise UsageError("--dgram-local needs --dgram: where packets go to")
    if options.tap is not None:
        return Tap(options.tap, pairs or 1)
    if options.tap_fd is not None:
        if pairs not in (None, len(options.tap_fd)):
            raise UsageError(f"--queue-pairs={pairs}: there are {len(options.tap_fd)} of --tap-fd")
        return Tap("", len(options.tap_fd), options.tap_fd)
    if pairs not in (None, 1):
        raise UsageError(f"--queue-pairs={pairs}: only a tap device has more than one")
    if options.stream is not None:
        return Stream(options.stream)
    if options.dgram_local is None:
        raise UsageError("--dgram needs --dgram-local: where packets come to")
    return Datagrams(options.dgram, options.dgram_local)


def _pairs(text: str) -> int:
    if not text.isdecimal() or len(text) > 3 or not 1 <= int(text) <= MOST_PAIRS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {MOST_PAIRS}")
    return int(text)


def _mtu(text: str) -> int:
    if not text.isdecimal() or len(text) > 5 or not LEAST_MTU <= int(text) <= MOST_MTU:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from {LEAST_MTU} to {MOST_MTU}")
    return int(text)


def _mac(text: str) -> bytes:
    try:
        mac = bytes.fromhex(text.replace(":", ""))
    except ValueError:
        mac = b""
    if len(mac) != MAC_SIZE or text.count(":") != MAC_SIZE - 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not an address such as 52:54:00:12:34:56")
    if mac[0] & 1:
        raise argparse.ArgumentTypeError(f"{text!r} is an address of several cards: its first byte is odd")
    return mac
