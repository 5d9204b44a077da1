"""A tap device of the host (Linux, Documentation/networking/tuntap.rst)."""

import errno
import fcntl
import logging
import os
import socket
import struct
from array import array
from collections.abc import Sequence
from contextlib import suppress

from vhost_user_net.features import CHECKSUMS, TCP, UDP, Feature, mask
from vhost_user_net.netdev import Netdev
from vhost_user_net.pair import Pair
from vhost_user_net.receive import TapReceive
from vhost_user_net.transmit import TapTransmit
from vhostd import Fd, Grants, Ioctl, SetupError

log = logging.getLogger(__name__)

FOLDER = "/dev/net"
NODE = "/dev/net/tun"
# Linux, include/uapi/linux/if_tun.h
TUNSETIFF, TUNSETOFFLOAD, TUNSETVNETHDRSZ, TUNSETQUEUE, TUNSETVNETLE = (
    Ioctl.writing("T", number, 4) for number in (202, 208, 216, 217, 220)
)
TUNGETIFF = Ioctl.reading("T", 210, 4)
IFF_TAP, IFF_MULTI_QUEUE, IFF_ATTACH_QUEUE, IFF_DETACH_QUEUE = 0x2, 0x100, 0x200, 0x400
IFF_NO_PI, IFF_VNET_HDR = 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, TUN_F_TSO_ECN, TUN_F_USO4, TUN_F_USO6 = 1, 2, 4, 8, 0x20, 0x40
OFFLOADS = {
    Feature.GUEST_CSUM: TUN_F_CSUM,
    Feature.GUEST_TSO4: TUN_F_TSO4,
    Feature.GUEST_TSO6: TUN_F_TSO6,
    Feature.GUEST_ECN: TUN_F_TSO_ECN,
    Feature.GUEST_USO4: TUN_F_USO4,
    Feature.GUEST_USO6: TUN_F_USO6,
}
# Linux, include/uapi/linux/sockios.h, if.h and ethtool.h
SIOCGIFFLAGS, SIOCETHTOOL, ETHTOOL_GDRVINFO, IFF_UP = 0x8913, 0x8946, 3, 1
DRIVER = struct.Struct("=I32x32x32x32s64x")  # struct ethtool_drvinfo: a command; where the device is
MOST_NAME = 15
IFREQ = struct.Struct("16sH22x")  # struct ifreq: a name, flags


class Tap(Netdev):
    """A tap device, by its name or by fds of it. With several pairs it has as many queues.

    Raises SetupError if it cannot be used.
    """

    def __init__(self, name: str, pairs: int, fds: Sequence[int] = ()) -> None:
        """`name` is its name; with `fds`, it is found out."""
        super().__init__(f"--tap={name}" if not fds else " ".join(f"--tap-fd={fd}" for fd in fds))
        self._device = name
        self._is_multi = pairs > 1
        self._offloads = self._header = -1  # as the kernel was told
        self._attached = [pairs == 1] * pairs  # whether the kernel gives packets to a queue
        self.pairs = [self._make_pair(index) for index in range(pairs)]
        opened = self._adopt(fds) if fds else self._open_first()
        self.features = CHECKSUMS | TCP | self._probe(opened[0])
        self.take(opened)

    def open(self) -> list[Fd]:
        """Attaches to the device, once for each pair; the kernel makes it if it may."""
        self._offloads = self._header = -1
        fds = []
        try:
            for _ in self.pairs:
                fds.append(Fd(os.open(NODE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)))
                _ioctl(fds[-1], TUNSETIFF, self._request())
        except OSError:
            for fd in fds:
                fd.close()
            raise
        return fds

    def take(self, fds: list[Fd]) -> None:
        """Has the device's packets. Of several queues those get none from which no driver takes them.

        Not every driver starts all: firmware and small ones start the first pair only.
        """
        super().take(fds)
        wanted, self._attached = self._attached, [True] * len(fds)
        for index, on in enumerate(wanted):
            self._attach(index, on=on)
        self.negotiate(self._agreed)

    def negotiate(self, features: int) -> None:
        """Tells the kernel the header's size, and what the driver takes."""
        super().negotiate(features)
        header = self.pairs[0].transmit.header
        offloads = sum(flag for feature, flag in OFFLOADS.items() if features & mask(feature))
        if not self._fds or (header, offloads) == (self._header, self._offloads):
            return
        try:
            _ioctl(self._fds[0], TUNSETVNETHDRSZ, struct.pack("=i", header))
            _ioctl(self._fds[0], TUNSETVNETLE, struct.pack("=i", 1))
            fcntl.ioctl(self._fds[0], TUNSETOFFLOAD.number, offloads)
        except OSError as error:
            self.lose(error.strerror or str(error))
            return
        self._header, self._offloads = header, offloads

    def grants(self) -> Grants:
        """What attaching to the device again takes, and telling the kernel of offloads."""
        ioctls = (TUNSETIFF, TUNSETOFFLOAD, TUNSETVNETHDRSZ, TUNSETQUEUE, TUNSETVNETLE)
        return Grants(ioctls=ioctls, devices=(FOLDER,), system_calls=("pwritev2",))

    def _make_pair(self, index: int) -> Pair:
        enabled = (lambda on: self._attach(index, on=on)) if self._is_multi else None
        return Pair(TapTransmit(self.lose), TapReceive(self.lose), enabled)

    def _request(self) -> bytes:
        flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (IFF_MULTI_QUEUE if self._is_multi else 0)
        return IFREQ.pack(os.fsencode(self._device), flags)

    def _open_first(self) -> list[Fd]:
        if not 0 < len(os.fsencode(self._device)) <= MOST_NAME:
            raise SetupError(f"{self.name}: no device has such a name; it has up to {MOST_NAME} bytes")
        was_there = _flags(self._device) is not None
        try:
            opened = self.open()
        except OSError as error:
            why = _remedy(error, self._device, is_multi=self._is_multi, is_there=was_there)
            raise SetupError(f"{self.name}: {why}") from None
        if not was_there:
            log.info("%s: there was no such device; it is made, and goes with this program", self.name)
        if not (_flags(self._device) or 0) & IFF_UP:
            log.warning("%s: it is down: ip link set %s up", self.name, self._device)
        return opened

    def _adopt(self, numbers: Sequence[int]) -> list[Fd]:
        """Fds that a launcher has opened, all of one tap device with vnet_hdr."""
        for number in numbers:
            try:
                name, flags = IFREQ.unpack(fcntl.ioctl(number, TUNGETIFF.number, bytes(IFREQ.size)))
            except OSError as error:
                raise SetupError(f"--tap-fd={number}: this is no tap device: {error.strerror}") from None
            if not flags & IFF_TAP:
                raise SetupError(f"--tap-fd={number}: this is a tun device: open it with IFF_TAP")
            if not flags & IFF_VNET_HDR:
                raise SetupError(f"--tap-fd={number}: it has no vnet_hdr: open it with IFF_VNET_HDR")
            if not flags & IFF_NO_PI:
                raise SetupError(f"--tap-fd={number}: it has packet information: open it with IFF_NO_PI")
            os.set_blocking(number, False)
            os.set_inheritable(number, False)
            self._device = os.fsdecode(name.rstrip(b"\0"))
        return [Fd(number) for number in numbers]

    def _probe(self, fd: Fd) -> int:
        """Offloads that not all kernels have. All are off afterwards."""
        every = sum(OFFLOADS.values())
        try:
            fcntl.ioctl(fd, TUNSETOFFLOAD.number, every)
        except OSError:
            return 0
        fcntl.ioctl(fd, TUNSETOFFLOAD.number, 0)
        return UDP

    def _attach(self, index: int, *, on: bool) -> None:
        """Has the kernel give packets to a queue, or to others only."""
        if self._is_multi and self._fds and self._attached[index] != on:
            flags = IFF_ATTACH_QUEUE if on else IFF_DETACH_QUEUE
            try:
                _ioctl(self._fds[index], TUNSETQUEUE, IFREQ.pack(b"", flags))
            except OSError as error:
                self.lose(error.strerror or str(error))
        self._attached[index] = on


def _ioctl(fd: Fd, request: Ioctl, argument: bytes) -> None:
    fcntl.ioctl(fd, request.number, argument)


def _flags(name: str) -> int | None:
    """The flags of a network device; None if there is none of that name."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        try:
            _, flags = IFREQ.unpack(fcntl.ioctl(sock, SIOCGIFFLAGS, IFREQ.pack(os.fsencode(name), 0)))
        except OSError:
            return None
    return int(flags)


def _is_tap(name: str) -> bool:
    """Whether the driver of a network device says that it is a tap device."""
    told = array("B", DRIVER.pack(ETHTOOL_GDRVINFO, b""))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, suppress(OSError):
        fcntl.ioctl(sock, SIOCETHTOOL, struct.pack("16sP16x", os.fsencode(name), told.buffer_info()[0]))
    return bool(DRIVER.unpack(told)[1].rstrip(b"\0") == b"tap")


def _remedy(error: OSError, name: str, *, is_multi: bool, is_there: bool) -> str:
    """What is wrong, and what makes it right."""
    queues = " multi_queue" if is_multi else ""
    make = f"ip tuntap add dev {name} mode tap{queues} user {os.geteuid()}"
    match error.errno:
        case errno.EPERM if is_there:
            how = f"it is another user's or group's; to make it anew: ip link del {name}; {make}"
        case errno.EPERM:
            how = f"somebody with CAP_NET_ADMIN has to make it for this user: {make}"
        case errno.EBUSY:
            how = "another program uses it"
        case errno.EINVAL if not _is_tap(name):
            how = "it is no tap device"
        case errno.EINVAL:
            how = f"it was made with{'out' if is_multi else ''} multi_queue: ip link del {name}; {make}"
        case errno.ENOENT:
            return f"{NODE}: {error.strerror}: load the module tun"
        case errno.EACCES:
            return f"{NODE}: {error.strerror}: let this user open it: chmod 0666 {NODE}"
        case _:
            return f"{error.strerror}"
    return f"{error.strerror}: {how}"
