"""How much a program does in a second, by its own metrics."""

import re
import socket
import time
from dataclasses import dataclass

from pydantic import BaseModel

from vhostd.program.metrics.address import Address

REQUEST = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
PATIENCE = 2.0  # seconds for an answer
LARGEST = 4 << 20  # bytes of an answer
SAMPLE = re.compile(
    r"^vhost_user_(requests|read_bytes|written_bytes)_total(?:\{[^}]*\})? (\S+)$", re.MULTILINE
)


@dataclass(frozen=True)
class Counts:
    """What a program has done since its start, and when it was asked."""

    at: float
    requests: float
    read: float
    written: float


class Rates(BaseModel):
    """Per second: requests, bytes that the device has read of the guest, and bytes that it wrote to it."""

    requests: float
    read: float
    written: float


def counts(address: Address) -> Counts:
    """Asks a program; raises OSError, or ValueError if the answer has no counts."""
    text = _page(address)
    sums = dict.fromkeys(("requests", "read_bytes", "written_bytes"), 0.0)
    for name, value in SAMPLE.findall(text):
        sums[name] += float(value)
    if "vhost_user_build_info" not in text:
        raise ValueError("there are no metrics of a vhost-user back-end")
    return Counts(time.monotonic(), *sums.values())


def rates(before: Counts, after: Counts) -> Rates:
    """What was done between two counts."""
    seconds = max(after.at - before.at, 0.001)
    return Rates(
        requests=_rate(after.requests - before.requests, seconds),
        read=_rate(after.read - before.read, seconds),
        written=_rate(after.written - before.written, seconds),
    )


def _rate(difference: float, seconds: float) -> float:
    """Not below 0, which is the difference to a program that was started again."""
    return round(max(0.0, difference) / seconds, 1)


def _page(address: Address) -> str:
    end = time.monotonic() + PATIENCE
    with _connect(address) as sock:
        sock.sendall(REQUEST)
        page = b""
        while len(page) < LARGEST:
            sock.settimeout(max(0.001, end - time.monotonic()))
            data = sock.recv(1 << 16)
            if not data:
                return page.decode(errors="replace").replace("\r\n", "\n")
            page += data
    raise ValueError("the answer is too long")


def _connect(address: Address) -> socket.socket:
    if not address.path:
        return socket.create_connection((address.host, address.port), PATIENCE)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(PATIENCE)
    try:
        sock.connect(address.path)
    except BaseException:
        sock.close()
        raise
    return sock
