"""What the author of a device writes: a subclass of `Device`, in one file.

    program starts     from_options, grants(), then run() beside everything else
      front-end comes    attach(), then read_config, write_config and its own calls at any time
        guest arrives      load(), before any ring starts; guest leaves: save(), when all have stopped
        ring starts        its handler, with a fresh Virtqueue
        ring stops         the handler's loop ends; cancelled only while it holds no chain
      front-end goes     detach(), and reset() once no ring runs any more
    program ends       run() is cancelled, close()

A handler may push back every chain that it took with `async for` or `pop`, also after its ring was told to
stop. So it needs no try/finally for chains. It must not wait long while it holds one, because the guest's
reset waits as well.

A GuestError of a handler, such as BadRequest, breaks its ring. A SetupError ends the program with one line.
An error that vhostd does not know is a fault of the device: the log has a traceback, and the connection is
closed.
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
from vhostd.wire.unpacker import Unpacker

Handler = Callable[[Virtqueue], Awaitable[None]]
Signals = Mapping[Literal["SIGHUP", "SIGUSR1", "SIGWINCH"], Callable[[], None]]  # what to call, by name


class Device:
    """One virtio device. `kind` and `queues` are required, the rest has defaults that fit many."""

    kind: ClassVar[DeviceType]  # `DeviceType.of(MANIFEST.type)`, or `DeviceType.other("lamp", 63)`
    features: int = 0  # a mask: the device's own feature bits, which the driver is offered
    negotiated: int = 0  # a mask: the bits of `features` that the driver accepted
    protocol_features: int = 0  # a mask: the vhost-user protocol features of the device's own `calls`
    link: Link = Link()  # to the front-end; it leads nowhere while there is none
    keeps_memory: bool = False  # it uses `Chain.gather`: such memory cannot be taken back, nor come late
    generation: int = 0  # how often the config space has changed (2.5)
    state_version: int = 1  # of the format in which `save` gives the state; 2 once that has changed
    state_limit: int = 1 << 16  # bytes of a state that `load` takes at most

    def __init_subclass__(cls) -> None:
        if "capabilities" in vars(cls):  # where they once were, and would be ignored
            raise TypeError(f"{cls.__name__}.capabilities: they belong into the program's Manifest")
        for name in ("queues", "calls"):
            if callable(vars(cls).get(name)):
                raise TypeError(f"{cls.__name__}.{name} is a method: write @property above it")

    @property
    def queues(self) -> Sequence[Handler]:
        """One handler per virtqueue, in the order of the device's section in the specification."""
        raise TypeError(f"{type(self).__name__} has no queues")

    @property
    def calls(self) -> Sequence[Call]:
        """The messages that the device itself answers, such as GPU_SET_SOCKET; by default none.

        `answer` or `answer_with_fds` makes a Call of a message's row and a method. The method returns the
        row's reply, or a Reply if fds go with it. For a row without a reply it returns None; the front-end
        gets an ack if it wants one. The method raises RefusedRequest for what it cannot do. It may be async,
        but no other message is read meanwhile.

        If a row needs a protocol feature, `protocol_features` must have its bit.
        """
        return ()

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        """Declares the device's command-line options, in a group of their own."""

    @classmethod
    def from_options(cls, options: argparse.Namespace) -> Self:
        """Makes the device; raises SetupError, or UsageError for options that do not fit together."""
        return cls()

    def grants(self) -> Grants:
        """What the device needs of the system after `from_options`, beside what it has open: here nothing.

        The sandbox begins then. It denies all that was not granted: files with EACCES, system calls and
        ioctls with EPERM.
        """
        return Grants()

    def places(self) -> Sequence[str]:
        """Where else the program listens. A person at a terminal is told at the start, a line for each."""
        return ()

    def signals(self) -> Signals:
        """Functions that the event loop calls at a signal. A signal that is not named here is ignored."""
        return {}

    def counts(self) -> Mapping[str, int]:
        """What the device itself counts, for the metrics, by names in small letters. None of it decreases."""
        return {}

    async def run(self) -> None:
        """What the device does beside its queues as long as the program lives.

        It may end early. A SetupError that it raises ends the program with that line and status 1; any other
        error ends it with a traceback.
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

        It is told of the config space anew, as after `config_changed`. No ring runs yet. It is not called
        after `load`, since the device knows then what the driver knows.
        """

    def save(self) -> bytes:
        """All that the driver relies on and does not say again, for `load` in another program. No ring runs.

        What the options say, or the host, is not part of it: the other program has its own. The device goes
        on as if nothing had happened, since the guest may stay after all.
        """
        return b""

    def load(self, state: bytes, version: int) -> None:
        """Takes over what `save` gave in another program, in its format of this version; no ring runs.

        A version is from 1 to `state_version`. Every byte may be an attacker's; `Unpacker` helps to take
        them. Raises RefusedRequest, and changes nothing, for a state that cannot be this device's.

        There may be no guest memory yet: what lies in it is looked up when a ring runs (`Virtqueue.gather`).
        """
        Unpacker(state).end()

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
