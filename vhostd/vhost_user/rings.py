"""The messages about rings: set-up, start, stop, and the inflight area."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from itertools import zip_longest
from typing import Protocol

from vhostd.errors import RefusedRequest
from vhostd.ring import InflightQueue, Ring, ring_format
from vhostd.vhost_user.dispatch import Agreed
from vhostd.vhost_user.inflight import make_area, map_area
from vhostd.vhost_user.memory import Memory
from vhostd.vhost_user.messages import (
    GET_INFLIGHT_FD,
    GET_VRING_BASE,
    SET_INFLIGHT_FD,
    SET_VRING_ADDR,
    SET_VRING_BASE,
    SET_VRING_CALL,
    SET_VRING_ENABLE,
    SET_VRING_ERR,
    SET_VRING_KICK,
    SET_VRING_NUM,
    VRING_KICK,
    Inflight,
    ProtocolFeature,
    VringAddr,
    VringFd,
    VringState,
)
from vhostd.vhost_user.vring import Vring
from vhostd.virtio.state import VirtioState
from vhostd.wire.calls import Call, Fds, Reply, answer, answer_with_fds
from vhostd.wire.channel import Channel
from vhostd.wire.fds import Fd

KICK_PATIENCE = 1.0  # seconds for which a kick that is a message waits at most for what the device does


class Starting(Protocol):
    """What is to be done before the first ring starts: `anew` if no driver has used a ring before."""

    def __call__(self, *, anew: bool) -> None: ...


class Rings:
    """Starts and stops the rings of a session.

    `running` is set while any ring runs; while no ring runs the device is suspended. `starting` is called
    before the first ring starts, when all others are stopped; `suspended` when the last has stopped.
    """

    def __init__(
        self,
        state: VirtioState,
        vrings: Sequence[Vring],
        memory: Memory,
        agreed: Agreed,
        channel: Channel,
        running: asyncio.Event,
        starting: Starting,
        suspended: Callable[[], None],
    ) -> None:
        self._state = state
        self._vrings = vrings
        self._memory = memory
        self._agreed = agreed
        self._channel = channel
        self._running = running
        self._starting = starting
        self._suspended = suspended
        self.calls: tuple[Call, ...] = (
            answer(SET_VRING_NUM, self.set_vring_num),
            answer(SET_VRING_ADDR, self.set_vring_addr),
            answer(SET_VRING_BASE, self.set_vring_base),
            answer(GET_VRING_BASE, self.get_vring_base),
            answer_with_fds(SET_VRING_KICK, self.set_vring_kick),
            answer(VRING_KICK, self.vring_kick),
            answer_with_fds(SET_VRING_CALL, self.set_vring_call),
            answer_with_fds(SET_VRING_ERR, self.set_vring_err),
            answer(SET_VRING_ENABLE, self.set_vring_enable),
            answer(GET_INFLIGHT_FD, self.get_inflight_fd),
            answer_with_fds(SET_INFLIGHT_FD, self.set_inflight_fd),
        )

    async def stop_all(self) -> None:
        """Stops all rings, after the requests in flight; FrontendGone if the front-end goes meanwhile."""
        await self._stop(self._vrings)

    def forget_inflight(self) -> None:
        """Forgets the inflight area: the driver begins anew, and rings that start from now on use none."""
        self._set_inflight([])

    # --- Set-up -----------------------------------------------------------------------------------------

    async def set_vring_num(self, state: VringState) -> None:
        vring = self._vring(state.index)
        self._format.check_size(state.num)
        await self._stop_if_disabled(vring)
        vring.set_size(state.num)

    def set_vring_addr(self, addr: VringAddr) -> None:
        self._vring(addr.index).set_addr(addr, self._memory.map)

    async def set_vring_base(self, state: VringState) -> None:
        vring = self._vring(state.index)
        self._format.check_base(state.num)
        await self._stop_if_disabled(vring)
        vring.set_base(state.num)

    def set_vring_call(self, vring_fd: VringFd, fds: Fds) -> None:
        self._vring(vring_fd.index).set_call(_one_fd(vring_fd, fds))

    def set_vring_err(self, vring_fd: VringFd, fds: Fds) -> None:
        self._vring(vring_fd.index).set_err(_one_fd(vring_fd, fds))

    def set_vring_enable(self, state: VringState) -> None:
        if state.num > 1:
            raise RefusedRequest(f"SET_VRING_ENABLE of vring {state.index} with {state.num}, not 0 or 1")
        self._vring(state.index).runner.enable(on=bool(state.num))

    # --- Start and stop ---------------------------------------------------------------------------------

    def set_vring_kick(self, vring_fd: VringFd, fds: Fds) -> None:
        vring, kick = self._vring(vring_fd.index), _one_fd(vring_fd, fds)
        self._prepare()
        vring.start(kick, self._memory.map, self._state.features)
        self._update_running()

    async def vring_kick(self, state: VringState) -> None:
        """Has the ring kicked, and answers when the device has done what the driver has asked for.

        The driver is told by messages that are sent before the ack, and whose acks nobody waits for here.
        User-mode Linux does nothing until it has the ack: no time passes in its simulation, and it answers no
        other message.
        """
        vring = self._vring(state.index)
        self._prepare()
        vring.kick(self._memory.map, self._state.features)
        self._update_running()
        if (queue := vring.runner.queue) is not None:
            await queue.settle(KICK_PATIENCE)

    def _prepare(self) -> None:
        """Call it before a ring starts, or goes on."""
        if not self._running.is_set():
            self._starting(anew=all(vring.base in self._format.STARTS for vring in self._vrings))

    async def get_vring_base(self, state: VringState) -> VringState:
        """Stops the ring. What is in flight is completed, or, if that was agreed on, left in the area."""
        vring = self._vring(state.index)
        if vring.is_recorded and self._agreed.has(ProtocolFeature.GET_VRING_BASE_INFLIGHT):
            await self._until_stopped(vring.runner.suspend())
        else:
            await self._stop([vring])
        return VringState(state.index, vring.base)

    async def _stop_if_disabled(self, vring: Vring) -> None:
        """Stops the ring if it is disabled: User-mode Linux disables a ring without stopping it."""
        if vring.runner.started and not vring.runner.is_enabled:
            await self._stop([vring])

    async def _stop(self, vrings: Iterable[Vring]) -> None:
        await self._until_stopped(self._state.stop(vring.runner for vring in vrings))

    async def _until_stopped(self, stopping: Coroutine[None, None, None]) -> None:
        await self._channel.outlast(stopping, "rings were stopping")
        self._update_running()

    def _update_running(self) -> None:
        if self._state.is_running:
            self._running.set()
        else:
            self._running.clear()
            self._suspended()

    # --- Inflight area ----------------------------------------------------------------------------------

    def get_inflight_fd(self, wanted: Inflight) -> Reply[Inflight]:
        self._check_queues(wanted)
        area, fd = make_area(self._format.INFLIGHT, wanted.num_queues, wanted.queue_size)
        return Reply(area, [fd])

    def set_inflight_fd(self, area: Inflight, fds: Fds) -> None:
        self._check_queues(area)
        self._set_inflight(map_area(self._format.INFLIGHT, area, fds[0]))

    def _check_queues(self, area: Inflight) -> None:
        if not 0 < area.num_queues <= len(self._vrings):
            raise RefusedRequest(f"an inflight area for {area.num_queues} queues of {len(self._vrings)}")

    def _set_inflight(self, queues: Sequence[InflightQueue]) -> None:
        """Gives each ring its part of the area for its next start; rings beyond the area get none."""
        for vring, inflight in zip_longest(self._vrings, queues):
            vring.inflight = inflight

    @property
    def _format(self) -> type[Ring]:
        return ring_format(self._state.features)

    def _vring(self, index: int) -> Vring:
        if index >= len(self._vrings):
            raise RefusedRequest(
                f"vring {index} of a device with {len(self._vrings)}: does the front-end ask for more queues "
                "than the program has?"
            )
        return self._vrings[index]


def _one_fd(vring_fd: VringFd, fds: Fds) -> Fd | None:
    if vring_fd.has_fd != bool(fds):
        raise RefusedRequest(f"vring {vring_fd.index}: {len(fds)} fds, and the flag says {vring_fd.has_fd:d}")
    return fds[0] if fds else None
