"""One front-end's connection to the device, from its first message to its end.

Each topic has a module with one short method per message: negotiation.py, memory.py, migration.py, rings.py,
translation.py, postcopy.py, config.py, status.py, device_state.py and link.py. A method refuses a message by
an exception; dispatch.py decides what the exception costs.
"""

import asyncio
import logging

from vhostd.errors import FrontendError, SetupError
from vhostd.vhost_user.config import Config
from vhostd.vhost_user.device_state import DeviceState
from vhostd.vhost_user.dispatch import Agreed, Dispatcher
from vhostd.vhost_user.doubt import Doubt
from vhostd.vhost_user.link import FrontendLink
from vhostd.vhost_user.memory import Memory
from vhostd.vhost_user.migration import Migration
from vhostd.vhost_user.negotiation import Negotiation
from vhostd.vhost_user.offer import DEFAULT_OFFER, Offer
from vhostd.vhost_user.postcopy import Postcopy
from vhostd.vhost_user.rings import Rings
from vhostd.vhost_user.status import Status
from vhostd.vhost_user.translation import Translation
from vhostd.vhost_user.vring import Vring
from vhostd.virtio.device import Device
from vhostd.virtio.leftovers import Leftovers
from vhostd.virtio.state import VirtioState
from vhostd.virtio.virtqueue import MakeQueue, Virtqueue
from vhostd.wire.channel import Channel

log = logging.getLogger(__name__)

# Seconds to wait for requests in flight: when the front-end goes; and when the program must end, or the next
# front-end waits.
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
        offer: Offer = DEFAULT_OFFER,
    ) -> None:
        """`leftovers` has the requests that earlier sessions gave up, and takes those of this one."""
        self.state = VirtioState(device, channel.abort, make_queue, leftovers)
        self._channel = channel
        self._agreed = Agreed()
        doubt, running = Doubt(), asyncio.Event()
        self._link = FrontendLink(self._agreed, running)
        self._vrings = [Vring(queue, doubt, self._link) for queue in self.state.queues]
        self._memory = Memory(self._vrings, self._agreed)
        self._postcopy = Postcopy(self._vrings, self._memory, channel.abort)
        self._config = Config(self.state, self._agreed)
        self._device_state = DeviceState(self.state, channel)
        self._translation = Translation(self.state, self._vrings, self._memory, channel, self._link)
        rings = Rings(
            *(self.state, self._vrings, self._memory, self._agreed, channel, running),
            starting=self._start,
            suspended=self._translation.forget,
        )
        status = Status(self.state, rings)
        self._migration = Migration(self.state, self._memory)
        topics = (
            *(self._memory, self._migration, self._translation, self._postcopy, rings),
            *(self._config, status, self._device_state, self._link),
        )
        negotiation = Negotiation(
            self.state, rings, self._migration, self._translation, self._agreed, offer, topics
        )
        calls = [call for topic in (negotiation, *topics) for call in topic.calls]
        self._dispatcher = Dispatcher(channel, [*calls, *device.calls], self._agreed)

    async def run(self) -> None:
        """Serves the front-end until it goes or breaks the protocol; raises only SetupError, of the device.

        In every case the rings stop at the end, after their requests in flight.
        """
        self.state.device.attach(self._link)
        try:
            await self._dispatcher.answer_requests()
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
        """Gives requests in flight only a moment more, since another front-end waits."""
        self.state.hurry(SHORT_PATIENCE)

    def describe(self) -> list[str]:
        """The negotiated features, and the state of each ring that was set up: one log line for each."""
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

    def _start(self, *, anew: bool) -> None:
        """Makes the device ready for its first ring."""
        self._device_state.end()
        self._config.resume(anew=anew, known=self._device_state.was_loaded)

    async def _close(self) -> None:
        self.state.device.detach()
        try:
            await self._device_state.close()
            await self._link.close()
            await self._translation.close()
            await self.state.end(DISCONNECT_PATIENCE)
        finally:
            # A ring runs here only if the wait above was cancelled, because the program must end.
            await self.state.end(SHORT_PATIENCE)
            self._postcopy.close()
            for vring in self._vrings:
                vring.close()
            self._migration.close()
            self._memory.close()
            self._channel.close()
            self.state.leave()
