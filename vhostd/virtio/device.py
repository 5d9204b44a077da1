"""What the author of a device writes: a subclass of `Device`, in one file.

    program starts     from_options, grants(), then run() beside everything else
      front-end comes    attach(), then read_config, write_config and show_on at any time
        ring starts        its handler, with a fresh Virtqueue
        ring stops         the handler's loop ends; cancelled only while it holds no chain
      front-end goes     detach(), and reset() once no ring runs any more
    program ends       run() is cancelled, close()

The stop rule makes handlers simple: whatever a handler took with `async for` or `pop` it will get to push
back, so it needs no try/finally for chains. It must not wait long while it holds one, because the guest's
reset waits as well.
"""

from collections.abc import Awaitable, Callable, Sequence

from vhostd.errors import RefusedRequest, UnknownRequest
from vhostd.virtio.vocabulary import DeviceType

TYPE_CHECKING = False  # these, and typing itself, cost start-up time that --print-capabilities does not have
if TYPE_CHECKING:
    import argparse
    import socket
    from typing import ClassVar, Self

    from vhostd.host.grants import Grants
    from vhostd.virtio.virtqueue import Virtqueue

Handler = Callable[["Virtqueue"], Awaitable[None]]


class Device:
    """One virtio device. `kind` and `queues` are required, the rest has defaults that fit many."""

    kind: "ClassVar[DeviceType]"
    capabilities: "ClassVar[tuple[str, ...]]" = ()  # the features that --print-capabilities lists
    features: int = 0  # the device's own feature bits that are offered, a mask
    negotiated: int = 0  # those that the driver accepted

    _config_changed: Callable[[], None] | None = None

    @property
    def queues(self) -> Sequence[Handler]:
        """One handler per virtqueue, in the order of the device's section in the specification."""
        raise TypeError(f"{type(self).__name__} has no queues")

    @classmethod
    def add_options(cls, parser: "argparse.ArgumentParser") -> None:
        """Declares the device's command-line options."""

    @classmethod
    def from_options(cls, options: "argparse.Namespace") -> "Self":
        """Makes the device; raises SetupError, or UsageError for options that do not fit together."""
        return cls()

    def grants(self) -> "Grants":
        """What it still needs of the system once it was made, beyond what it has open; by default nothing.

        Files are opened in `from_options`: after that the sandbox denies it all else, with EACCES or EPERM.
        """
        from vhostd.host.grants import Grants

        return Grants()

    async def run(self) -> None:
        """What the device does beside its queues as long as the program lives.

        It may end early; a SetupError that it raises ends the program with that line and status 1.
        """

    def read_config(self) -> bytes:
        """The complete config space as it is now; empty if the device has none."""
        return b""

    def write_config(self, offset: int, data: bytes) -> None:
        """Takes what the driver wrote inside the space; raises RefusedRequest if it may not."""
        raise RefusedRequest(f"SET_CONFIG at {offset}: the config space is read-only")

    def show_on(self, sock: "socket.socket") -> None:
        """Takes the socket on which the front-end shows what a GPU renders, in place of an older one.

        It is connected, and the device's own from now on. Raises UnknownRequest if the device shows nothing.
        """
        sock.close()
        raise UnknownRequest(f"GPU_SET_SOCKET for {self.kind.name}, which shows nothing")

    def config_changed(self) -> None:
        """Tells the driver to read the config space again; without effect while there is no front-end."""
        if self._config_changed is not None:
            self._config_changed()

    def resume(self) -> None:
        """Goes on for a driver that was set up before this front-end connected, perhaps by another program.

        It is told of the config space anew, as after `config_changed`. No ring runs yet.
        """

    def reset(self) -> None:
        """Returns to the initial state: the driver, or the front-end, starts afresh. No ring runs."""

    async def finish(self) -> None:
        """Tells the driver what it must know before the program ends; it has 50 ms, while the rings run."""

    def close(self) -> None:
        """Gives up what the device holds; the program ends."""

    def attach(self, config_changed: Callable[[], None]) -> None:
        """For the transport: whom to tell of changes of the config space."""
        self._config_changed = config_changed

    def detach(self) -> None:
        """For the transport: nobody is to be told any more, or shown anything."""
        self._config_changed = None
