"""The places on the host that a guest's sockets lead from and to, as the options name them."""

import argparse
import socket
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from vhost_user_vsock.protocol import HOST_CID
from vhost_user_vsock.routes import SEQPACKET_SUFFIX, Route, Sibling, UnixServers, VsockServers
from vhostd import Grants, SetupError, listen

BACKLOG = 128  # clients that wait to be accepted
KINDS = (socket.SOCK_STREAM, socket.SOCK_SEQPACKET)


class Places:
    """Sockets that listen for clients, which it owns, and routes to servers."""

    def __init__(self, routes: Mapping[int, Route]) -> None:
        self.routes = routes
        self.listeners: list[socket.socket] = []
        self.described: list[str] = []
        self._grants: list[Grants] = []
        self._stack = ExitStack()

    @property
    def siblings(self) -> Sequence[int]:
        """The CIDs of other guests, in the name of which clients may ask."""
        return [cid for cid in self.routes if cid != HOST_CID]

    def grants(self) -> Grants:
        """Sockets of the kinds that lead somewhere, and the removal of the socket files."""
        families = {socket.AF_UNIX, *(listener.family for listener in self.listeners)}
        families |= {socket.AF_VSOCK for route in self.routes.values() if isinstance(route, VsockServers)}
        sockets = tuple((int(family), int(kind)) for family in families for kind in KINDS)
        own = Grants(sockets=sockets, system_calls=("connect", "setsockopt"))
        return Grants.together([own, *self._grants])

    def listen_unix(self, path: str, mode: int | None, group: int | None) -> None:
        """Takes clients at a path, and those for SEQPACKET beside it."""
        for suffix, kind in zip(("", SEQPACKET_SUFFIX), KINDS, strict=True):
            endpoint = listen(path + suffix, mode=mode, group=group, backlog=BACKLOG, kind=kind)
            self._stack.callback(endpoint.close)
            self._grants.append(endpoint.grants())
            self.listeners.append(endpoint.socket)
        self.described.append(f"clients are taken at {path}")

    def listen_vsock(self, cid: int, port: int) -> None:
        """Takes clients at an AF_VSOCK port."""
        try:
            listener = self._stack.enter_context(socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM))
            listener.setblocking(False)
            listener.bind((cid, port))
            listener.listen(BACKLOG)
        except OSError as error:
            raise SetupError(
                f"cannot listen at AF_VSOCK {cid}:{port}: {error.strerror}{_hint(cid)}"
            ) from None
        self.listeners.append(listener)
        self.described.append(f"clients are taken at AF_VSOCK {cid}:{port}")

    def close(self) -> None:
        """Stops listening, and removes the socket files; idempotent."""
        self._stack.close()


def open_places(options: argparse.Namespace) -> Places:
    """The places that the options name; raises SetupError, and leaves none open then."""
    routes: dict[int, Route] = {cid: Sibling(path) for cid, path in options.sibling or ()}
    if options.uds_path is not None:
        routes[HOST_CID] = UnixServers(options.uds_path)
    else:
        routes[HOST_CID] = VsockServers(options.forward_cid)
    places = Places(routes)
    try:
        if options.uds_path is not None:
            places.listen_unix(options.uds_path, options.uds_mode, options.uds_group)
        for port in options.forward_listen or ():
            places.listen_vsock(options.forward_cid, port)
    except BaseException:
        places.close()
        raise
    return places


def _hint(cid: int) -> str:
    return "; is the module vsock_loopback loaded?" if cid == 1 else ""
