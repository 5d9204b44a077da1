"""A scraper: asks for metrics as Prometheus does, or worse, and reads them with Prometheus' parser."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from tests.programs import PATIENCE

GET = b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n"

Place = str | tuple[str, int]  # a path, or a host and a port
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Response(NamedTuple):
    """What came back."""

    status: int
    fields: dict[str, str]
    content: bytes

    @classmethod
    def parse(cls, data: bytes) -> "Response":
        head, end, content = data.partition(b"\r\n\r\n")
        assert end, f"no response: {data!r}"
        first, *rest = head.decode().split("\r\n")
        version, status, _ = first.split(" ", 2)
        assert version == "HTTP/1.1"
        fields = dict(line.split(": ", 1) for line in rest)
        return cls(int(status), {name.lower(): value for name, value in fields.items()}, content)

    def value(self, name: str, **labels: str) -> float | None:
        """The value of the sample with this name and these labels, None if there is none."""
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(self.content.decode())
            for sample in family.samples
        }.get((name, frozenset(labels.items())))


def place_of(listener: socket.socket) -> Place:
    """Where a listening socket is met."""
    name = listener.getsockname()
    return name if isinstance(name, str) else name[:2]


@contextmanager
def connected(place: Place) -> Iterator[socket.socket]:
    """A connection that blocks."""
    if isinstance(place, str):
        family = socket.AF_UNIX
    else:
        family = socket.AF_INET6 if ":" in place[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(place)
        yield sock


def scrape(place: Place, request: bytes = GET) -> Response:
    """Sends a request to a program, and reads to the end."""
    with connected(place) as sock:
        sock.sendall(request)
        data = b""
        while more := sock.recv(65536):
            data += more
    return Response.parse(data)


@asynccontextmanager
async def talking(place: Place) -> AsyncIterator[Streams]:
    """A connection on the event loop."""
    opened = (
        asyncio.open_unix_connection(place) if isinstance(place, str) else asyncio.open_connection(*place)
    )
    reader, writer = await opened
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        await asyncio.sleep(0)


async def ask(place: Place, request: bytes = GET) -> Response:
    """As `scrape`, on the event loop."""
    async with talking(place) as (reader, writer):
        writer.write(request)
        return Response.parse(await reader.read())
