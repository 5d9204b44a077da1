"""One front-end's connection to the device, from its first message to its end.

What the messages say is done by topic: negotiation.py, memory.py, rings.py, config.py, status.py and link.py,
each with one short method per message. What one of them refuses it refuses by raising; dispatch.py decides
what that costs.
"""

import asyncio
import logging

from vhostd.errors import FrontendError, SetupError
from vhostd.vhost_user.config import Config
from vhostd.vhost_user.dispatch import Agreed, Dispatcher
from vhostd.vhost_user.doubt import Doubt
from vhostd.vhost_user.link import FrontendLink
from vhostd.vhost_user.memory import Memory
from vhostd.vhost_user.negotiation import Negotiation
from vhostd.vhost_user.rings import Rings
from vhostd.vhost_user.status import Status
from vhostd.vhost_user.vring import Vring
from vhostd.virtio.device import Device
from vhostd.virtio.leftovers import Leftovers
from vhostd.virtio.state import VirtioState
from vhostd.virtio.virtqueue import MakeQueue, Virtqueue
from vhostd.wire.channel import Channel

log = logging.getLogger(__name__)

# Seconds that requests in flight are waited for when the front-end goes; and when the program is to end, or
# the next front-end wants to be served.
DISCONNECT_PATIENCE = 10.0
SHORT_PATIENCE = 0.05


class Session:
    """Connects one front-end to the device."""

    def __init__(
        self,
        device: Device,
        channel: Channel,
        make_queue: MakeQueue = Virtqueue,
        leftovers: Leftovers | None = None,
    ) -> None:
        """`leftovers` is what earlier sessions of the device have left behind, and this one may."""
        self.state = VirtioState(device, channel.abort, make_queue, leftovers)
        self._channel = channel
        self._agreed = Agreed()
        doubt, running = Doubt(), asyncio.Event()
        self._vrings = [Vring(queue, doubt) for queue in self.state.queues]
        self._memory = Memory(self._vrings)
        self._link = FrontendLink(self._agreed, running)
        config = Config(self.state, self._agreed)
        rings = Rings(self.state, self._vrings, self._memory, channel, running, config.resume)
        status = Status(self.state, rings)
        negotiation = Negotiation(self.state, rings, self._agreed)
        topics = (negotiation, self._memory, rings, config, status, self._link)
        calls = [call for topic in topics for call in topic.calls]
        self._dispatcher = Dispatcher(channel, [*calls, *device.calls], self._agreed)

    async def run(self) -> None:
        """Serves the front-end until it goes or breaks the protocol; raises only SetupError, of the device.

        However it ends, the rings stop, after the requests that they have in flight.
        """
        self.state.device.attach(self._link)
        try:
            await self._dispatcher.serve()
            log.info("the front-end has gone")
        except FrontendError as error:
            log.error("closing the connection: %s", error)
        except SetupError:
            raise
        except Exception:
            log.exception("closing the connection after a fault of this program")
        except asyncio.CancelledError:
            self.hurry()
            raise
        finally:
            await self._close()

    def hurry(self) -> None:
        """Another front-end wants to be served: requests in flight get no more than a moment."""
        self.state.hurry(SHORT_PATIENCE)

    def describe(self) -> list[str]:
        """What was negotiated, and every ring that was set up, as it is now: a line of each for the log."""
        state, memory = self.state, self._memory
        negotiated = (
            f"a front-end is connected, features={state.features:#x} "
            f"protocol_features={self._agreed.protocol_features:#x} status={state.status:#x} "
            f"{memory.describe()}"
        )
        used = [vring for vring in self._vrings if vring.size]
        lines = [negotiated, *(vring.describe(memory.map, state.features) for vring in used)]
        if unused := len(self._vrings) - len(used):
            lines.append(f"rings that were not set up: {unused}")
        return lines

    async def _close(self) -> None:
        self.state.device.detach()
        try:
            await self._link.close()
            await self.state.end(DISCONNECT_PATIENCE)
        finally:
            # A ring that still runs does so because the program is to end meanwhile.
            self.hurry()
            await self.state.end(SHORT_PATIENCE)
            for vring in self._vrings:
                vring.close()
            self._memory.close()
            self._channel.close()
            self.state.leave()
