"""Vsock: the socket device as a device."""

import argparse
import asyncio
import resource
from collections.abc import Sequence
from typing import Self

from vhost_user_vsock import MANIFEST
from vhost_user_vsock.clients import MOST_LINES, Clients
from vhost_user_vsock.places import Places, open_places
from vhost_user_vsock.protocol import RESERVED_CIDS, TRANSPORT_RESET, VsockFeature
from vhost_user_vsock.switchboard import Switchboard
from vhostd import (
    Device,
    DeviceType,
    Grants,
    Handler,
    SetupError,
    UsageError,
    Virtqueue,
    positive,
    size,
    socket_group,
    socket_mode,
)

BUFFER = 1 << 18  # bytes for each connection, as Linux has it
LEAST_BUFFER, MOST_BUFFER = 1 << 12, 1 << 26
CID = 3
CONNECTIONS = 1024
MOST_CONNECTIONS = 3072  # the program may have 4096 fds
OTHER_FDS = 256 + MOST_LINES  # that are for the front-end, its rings, the program itself, and new clients
MOST_CID = 0xFFFF_FFFE


class Vsock(Device):
    """sockets between the guest and the host (virtio-vsock)"""

    kind = DeviceType.of(MANIFEST.type)
    features = 1 << VsockFeature.STREAM | 1 << VsockFeature.SEQPACKET

    def __init__(self, guest_cid: int, places: Places, *, most: int, buf_alloc: int) -> None:
        """Leads from and to these places, which it owns."""
        self._guest_cid = guest_cid
        self._places = places
        self._board = Switchboard(guest_cid, places.routes, most=most, buf_alloc=buf_alloc)
        self._has_gone_on = False  # the guest may have connections of another program

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument_group("sockets").add_argument
        add("--guest-cid", metavar="CID", type=_cid, default=CID, help="the guest's address; default: 3")
        add("--uds-path", metavar="PATH", help="take clients at this unix socket; servers are at PATH_<port>")
        add("--uds-mode", metavar="MODE", type=socket_mode, help="that socket's mode, such as 0660")
        add("--uds-group", metavar="GROUP", type=socket_group, help="that socket's group")
        add(
            "--forward-cid",
            metavar="CID",
            type=positive,
            help="AF_VSOCK servers are at this CID; 1 is the host",
        )
        add(
            "--forward-listen", metavar="PORTS", type=_ports, help="take AF_VSOCK clients at ports: 9001+9002"
        )
        add(
            "--sibling",
            metavar="CID=PATH",
            type=_sibling,
            action="append",
            help="lead to and from another guest, whose program has this --uds-path",
        )
        add("--tx-buffer-size", metavar="SIZE", type=size, help="for each connection; default: 256K")
        add("--max-connections", metavar="N", type=positive, help="at once; default: 1024")

    @classmethod
    def from_options(cls, options: argparse.Namespace) -> Self:
        """Opens the places; raises UsageError for options that do not fit together."""
        _check_places(options)
        buffer, most = options.tx_buffer_size or BUFFER, _most_connections(options.max_connections)
        if not LEAST_BUFFER <= buffer <= MOST_BUFFER:
            raise UsageError("--tx-buffer-size is from 4K to 64M")
        return cls(options.guest_cid, open_places(options), most=most, buf_alloc=buffer)

    def grants(self) -> Grants:
        """What reaching servers takes."""
        return self._places.grants()

    def places(self) -> Sequence[str]:
        """Where clients are taken."""
        return self._places.described

    @property
    def queues(self) -> Sequence[Handler]:
        """The rx, tx and event virtqueues (5.10.2)."""
        return [self.rxq, self.txq, self.eventq]

    async def rxq(self, queue: Virtqueue) -> None:
        """Fills the driver's buffers."""
        inbound = self._board.inbound
        self._board.rx = queue
        try:
            await queue.pump(inbound, inbound.fileno())
        finally:
            self._board.rx = None

    async def txq(self, queue: Virtqueue) -> None:
        """Takes the driver's packets; none while too many wait that answer them."""
        queue.use_shortcut(self._board.outbound)
        async for chain in queue:
            queue.put_back(chain)
            await self._board.wait()

    async def eventq(self, queue: Virtqueue) -> None:
        """Says once that all connections are gone, to a driver that has some of another program's."""
        async for chain in queue:
            if not self._has_gone_on:
                queue.put_back(chain)
                return
            self._has_gone_on = False
            chain.write(TRANSPORT_RESET)
            queue.push(chain)

    async def run(self) -> None:
        """Serves the host's side."""
        loop = asyncio.get_running_loop()
        outbound = self._board.outbound
        loop.add_reader(outbound.fileno(), outbound.flush)
        try:
            await Clients(self._board, self._places.listeners, self._places.siblings).run()
        finally:
            loop.remove_reader(outbound.fileno())

    def read_config(self) -> bytes:
        """The guest's CID (5.10.4)."""
        return self._guest_cid.to_bytes(8, "little")

    def resume(self) -> None:
        """Has the driver told that its connections are gone, if its front-end lends us the event queue."""
        self._has_gone_on = True

    def load(self, state: bytes, version: int) -> None:
        """The driver comes from another program, with its connections, of which nothing comes along."""
        super().load(state, version)
        self.resume()

    def reset(self) -> None:
        """Closes the connections of a driver that has gone."""
        self._has_gone_on = False
        self._board.start_over()

    def close(self) -> None:
        """Closes everything, and removes the socket files."""
        self._board.close()
        self._places.close()


def _cid(text: str) -> int:
    """The type of --guest-cid."""
    if not text.isdecimal() or len(text) > 10 or int(text) > MOST_CID or int(text) in RESERVED_CIDS:
        raise argparse.ArgumentTypeError(f"{text!r} is no CID of a guest, which is from 3 to {MOST_CID}")
    return int(text)


def _ports(text: str) -> list[int]:
    """The type of --forward-listen."""
    ports = [int(port) for port in text.split("+") if port.isdecimal() and len(port) <= 10]
    if len(ports) != text.count("+") + 1 or max(ports) > MOST_CID:
        raise argparse.ArgumentTypeError(f"{text!r} are no ports such as 9001+9002")
    return ports


def _sibling(text: str) -> tuple[int, str]:
    """The type of --sibling."""
    cid, _, path = text.partition("=")
    if not path:
        raise argparse.ArgumentTypeError(f"{text!r} is not a CID and a path, such as 4=/run/vm4.vsock")
    return _cid(cid), path


def _most_connections(wanted: int | None) -> int:
    """How many connections there may be. Raises UsageError, or SetupError if there are too few fds."""
    if wanted is not None and wanted > MOST_CONNECTIONS:
        raise UsageError(f"--max-connections is at most {MOST_CONNECTIONS}")
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_CONNECTIONS if limit == resource.RLIM_INFINITY else limit - OTHER_FDS
    if (wanted or 1) > most:
        raise SetupError(f"--max-connections={wanted or 1} takes {OTHER_FDS} fds more; the limit is {limit}")
    return wanted or min(CONNECTIONS, most)


def _check_places(options: argparse.Namespace) -> None:
    """Raises UsageError unless the options say where the guest's sockets lead."""
    if (options.uds_path is None) == (options.forward_cid is None):
        both = options.uds_path is not None
        raise UsageError(
            "only one of --uds-path and --forward-cid" if both else "--uds-path or --forward-cid is needed"
        )
    if options.uds_path is not None and options.uds_path == options.socket_path:
        raise UsageError("--uds-path: clients need another socket than the front-end's --socket-path")
    if options.uds_path is None and (options.uds_mode, options.uds_group) != (None, None):
        raise UsageError("--uds-mode and --uds-group need --uds-path")
    if options.forward_cid is None and options.forward_listen is not None:
        raise UsageError("--forward-listen needs --forward-cid")
    siblings = [cid for cid, _ in options.sibling or ()]
    if options.guest_cid in siblings:
        raise UsageError(f"--sibling={options.guest_cid}=...: this is the guest's own CID, by --guest-cid")
    if len(set(siblings)) < len(siblings):
        raise UsageError("--sibling: each is another guest")
