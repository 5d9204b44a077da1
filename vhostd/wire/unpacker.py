"""Takes bytes of an untrusted origin apart, from the first to the last."""

from typing import TypeVar

from vhostd.errors import RefusedRequest
from vhostd.wire.layout import Layout

L = TypeVar("L", bound=Layout)


class Unpacker:
    """Bytes to take, one part after the other. Each method raises RefusedRequest if they are not as long."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)

    def take(self, size: int) -> memoryview:
        """The next `size` bytes. They stay the same object: nothing is copied."""
        if not 0 <= size <= len(self._data):
            raise RefusedRequest(f"{size} bytes are expected where {len(self._data)} are left")
        taken, self._data = self._data[:size], self._data[size:]
        return taken

    def unpack(self, layout: type[L]) -> L:
        """The next struct."""
        return layout.unpack(self.take(layout.SIZE))

    def end(self) -> None:
        """Expects that nothing is left."""
        if self._data:
            raise RefusedRequest(f"{len(self._data)} bytes are left at the end")
