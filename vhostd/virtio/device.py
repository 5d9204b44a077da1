"""What the author of a device writes: a subclass of `Device`, in one file.

    program starts     from_options, grants(), then run() beside everything else
      front-end comes    attach(), then read_config, write_config and its own calls at any time
        ring starts        its handler, with a fresh Virtqueue
        ring stops         the handler's loop ends; cancelled only while it holds no chain
      front-end goes     detach(), and reset() once no ring runs any more
    program ends       run() is cancelled, close()

The stop rule makes handlers simple: whatever a handler took with `async for` or `pop` it will get to push
back, so it needs no try/finally for chains. It must not wait long while it holds one, because the guest's
reset waits as well.
"""

import argparse
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import ClassVar, Literal, Self

from vhostd.errors import RefusedRequest
from vhostd.host.grants import Grants
from vhostd.virtio.link import Link
from vhostd.virtio.virtqueue import Virtqueue
from vhostd.virtio.vocabulary import DeviceType
from vhostd.wire.calls import Call

Handler = Callable[[Virtqueue], Awaitable[None]]
Signals = Mapping[Literal["SIGHUP", "SIGUSR1"], Callable[[], None]]  # by their names: what is to be called


class Device:
    """One virtio device. `kind` and `queues` are required, the rest has defaults that fit many."""

    kind: ClassVar[DeviceType]
    features: int = 0  # the device's own feature bits that are offered, a mask
    negotiated: int = 0  # those that the driver accepted
    protocol_features: int = 0  # those of vhost-user that the device serves, a mask; see `calls`
    link: Link = Link()  # to the front-end; it leads nowhere while there is none
    generation: int = 0  # how often the config space has changed (2.5)

    @property
    def queues(self) -> Sequence[Handler]:
        """One handler per virtqueue, in the order of the device's section in the specification."""
        raise TypeError(f"{type(self).__name__} has no queues")

    @property
    def calls(self) -> Sequence[Call]:
        """The vhost-user messages that the device itself serves, such as GPU_SET_SOCKET; by default none.

        A message of a protocol feature needs that in `protocol_features`.
        """
        return ()

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        """Declares the device's command-line options."""

    @classmethod
    def from_options(cls, options: argparse.Namespace) -> Self:
        """Makes the device; raises SetupError, or UsageError for options that do not fit together."""
        return cls()

    def grants(self) -> Grants:
        """What it still needs of the system once it was made, beyond what it has open; by default nothing.

        Files are opened in `from_options`: after that the sandbox denies it all else, with EACCES or EPERM.
        """
        return Grants()

    def signals(self) -> Signals:
        """What is called, on the event loop, when somebody sends the program a signal; others are ignored."""
        return {}

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

    def config_changed(self) -> None:
        """Tells the driver to read the config space again; without effect while there is no front-end."""
        self.generation += 1
        self.link.config_changed()

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

    def attach(self, link: Link) -> None:
        """For the transport: a front-end has come, and this is the way to it."""
        self.link = link

    def detach(self) -> None:
        """For the transport: it has gone."""
        self.link = Link()
