"""What a back-end offers, so that cases have valid conversations in them."""

import select
import socket
from typing import Any, NamedTuple

from vhostd.errors import SetupError
from vhostd.fuzz.patience import Patience
from vhostd.vhost_user.messages import (
    GET_FEATURES,
    GET_PROTOCOL_FEATURES,
    GET_QUEUE_NUM,
    SET_FEATURES,
    SET_OWNER,
    SET_PROTOCOL_FEATURES,
    ProtocolFeature,
)
from vhostd.virtio.vocabulary import Feature, mask
from vhostd.wire.framing import HEADER, VERSION
from vhostd.wire.rows import U64, Row

PROTOCOL = 1 << 30  # the feature that there are protocol features
QUEUES = 2  # of a back-end that does not tell


class Traits(NamedTuple):
    """Masks of features, and the number of queues."""

    features: int
    protocol: int
    queues: int


def learn(sock: socket.socket, patience: Patience) -> Traits:
    """Asks on a fresh connection, and closes it. Raises SetupError if there is no answer."""
    try:
        with sock:
            features = _ask(sock, patience, GET_FEATURES)
            protocol = _ask(sock, patience, GET_PROTOCOL_FEATURES) if features & PROTOCOL else 0
            _tell(sock, SET_OWNER)
            _tell(sock, SET_FEATURES, U64(features & (PROTOCOL | mask(Feature.VERSION_1))).pack())
            if not GET_QUEUE_NUM.exists(protocol):
                return Traits(features, protocol, QUEUES)
            agreed = protocol & (1 << ProtocolFeature.MQ)
            _tell(sock, SET_PROTOCOL_FEATURES, U64(agreed).pack())
            return Traits(features, protocol, _ask(sock, patience, GET_QUEUE_NUM))
    except OSError as error:
        raise SetupError(f"the back-end does not say what it offers: {error}") from None


def _tell(sock: socket.socket, row: Row[Any, Any], payload: bytes = b"") -> None:
    sock.send(HEADER.pack(row.request, VERSION, len(payload)) + payload)


def _ask(sock: socket.socket, patience: Patience, row: Row[Any, Any]) -> int:
    _tell(sock, row)
    data = b""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    while len(data) < HEADER.size + U64.SIZE:
        if not patience.wait(poll):
            if patience.is_over:
                raise TimeoutError(f"no answer to {row}")
            continue
        if not (piece := sock.recv(HEADER.size + U64.SIZE - len(data))):
            raise ConnectionResetError(f"it closes the connection after {row}")
        data += piece
    return U64.unpack(data[HEADER.size :]).value
