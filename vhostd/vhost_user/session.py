"""One front-end's connection: negotiation, memory and rings, one short handler per message.

Handlers stand by topic, and within one in the order of the message table. What each may refuse it refuses by
raising; dispatch.py decides what that costs.
"""

import asyncio
import gc
import logging
from collections.abc import Sequence
from itertools import zip_longest

from vhostd.errors import FrontendError, FrontendGone, RefusedDriver, RefusedRequest, SetupError
from vhostd.ring import MAX_REGIONS, GuestMemory, InflightQueue, Region
from vhostd.vhost_user.backend_channel import BackendChannel
from vhostd.vhost_user.dispatch import Dispatcher
from vhostd.vhost_user.doubt import Doubt
from vhostd.vhost_user.inflight import make_area, map_area
from vhostd.vhost_user.messages import (
    ADD_MEM_REG,
    CONFIG_CHANGE_MSG,
    GET_CONFIG,
    GET_FEATURES,
    GET_INFLIGHT_FD,
    GET_MAX_MEM_SLOTS,
    GET_PROTOCOL_FEATURES,
    GET_QUEUE_NUM,
    GET_STATUS,
    GET_VRING_BASE,
    GPU_SET_SOCKET,
    REM_MEM_REG,
    RESET_DEVICE,
    RESET_OWNER,
    SET_BACKEND_REQ_FD,
    SET_CONFIG,
    SET_FEATURES,
    SET_INFLIGHT_FD,
    SET_MEM_TABLE,
    SET_OWNER,
    SET_PROTOCOL_FEATURES,
    SET_STATUS,
    SET_VRING_ADDR,
    SET_VRING_BASE,
    SET_VRING_CALL,
    SET_VRING_ENABLE,
    SET_VRING_ERR,
    SET_VRING_KICK,
    SET_VRING_NUM,
    U64,
    ConfigSpace,
    Inflight,
    MemoryRegion,
    MemoryTable,
    ProtocolFeature,
    SingleRegion,
    VringAddr,
    VringFd,
    VringState,
)
from vhostd.vhost_user.vring import Vring
from vhostd.virtio.device import Device
from vhostd.virtio.leftovers import Leftovers
from vhostd.virtio.virtqueue import MakeQueue, Virtqueue
from vhostd.virtio.vocabulary import Feature, mask
from vhostd.wire.calls import Call, Fds, Reply, answer, answer_with_fds
from vhostd.wire.channel import Channel
from vhostd.wire.fds import Fd
from vhostd.wire.rows import Empty
from vhostd.wire.sockets import connected_stream

log = logging.getLogger(__name__)

RING_FEATURES = mask(Feature.VERSION_1, Feature.EVENT_IDX, Feature.INDIRECT_DESC, Feature.PROTOCOL_FEATURES)
# QEMU's GPU sets it without having asked. A queue's reset is a ring's stop and start, of which it tells us.
TOLERATED_FEATURES = mask(Feature.RING_RESET)
PROTOCOL_FEATURES = mask(
    ProtocolFeature.MQ,
    ProtocolFeature.REPLY_ACK,
    ProtocolFeature.BACKEND_REQ,
    ProtocolFeature.INFLIGHT_SHMFD,
    ProtocolFeature.RESET_DEVICE,
    ProtocolFeature.CONFIGURE_MEM_SLOTS,
    ProtocolFeature.STATUS,
)
# Seconds that requests in flight are waited for when the front-end goes; and when the program is to end, or
# the next front-end wants to be served.
DISCONNECT_PATIENCE = 10.0
SHORT_PATIENCE = 0.05


class Session(Dispatcher):
    """Connects one front-end to the device, from its first message to the end of its connection."""

    def __init__(
        self,
        device: Device,
        channel: Channel,
        make_queue: MakeQueue = Virtqueue,
        leftovers: Leftovers | None = None,
    ) -> None:
        """`leftovers` is what earlier sessions of the device have left behind, and this one may."""
        super().__init__(channel, self._served())
        self.device = device
        self.features = 0
        self.status = 0
        self.memory = GuestMemory()
        leftovers, doubt = Leftovers() if leftovers is None else leftovers, Doubt()
        self.vrings = [
            Vring(index, queue, self.fail, make_queue, leftovers, doubt)
            for index, queue in enumerate(device.queues)
        ]
        self._patience = DISCONNECT_PATIENCE
        self._giving_up: asyncio.TimerHandle | None = None
        self._backend: BackendChannel | None = None
        self._announcer: asyncio.Task[None] | None = None
        self._config_is_new = asyncio.Event()
        self._config_was_read = False
        self._running = asyncio.Event()  # unset while all rings are stopped: the device is suspended

    def _served(self) -> list[Call]:
        return [
            answer(GET_FEATURES, self.get_features),
            answer(SET_FEATURES, self.set_features),
            answer(SET_OWNER, self.set_owner),
            answer(RESET_OWNER, self.reset_owner),
            answer(GET_PROTOCOL_FEATURES, self.get_protocol_features),
            answer(SET_PROTOCOL_FEATURES, self.set_protocol_features),
            answer(GET_QUEUE_NUM, self.get_queue_num),
            answer_with_fds(SET_MEM_TABLE, self.set_mem_table),
            answer(GET_MAX_MEM_SLOTS, self.get_max_mem_slots),
            answer_with_fds(ADD_MEM_REG, self.add_mem_reg),
            answer(REM_MEM_REG, self.rem_mem_reg),
            answer(SET_VRING_NUM, self.set_vring_num),
            answer(SET_VRING_ADDR, self.set_vring_addr),
            answer(SET_VRING_BASE, self.set_vring_base),
            answer(GET_VRING_BASE, self.get_vring_base),
            answer_with_fds(SET_VRING_KICK, self.set_vring_kick),
            answer_with_fds(SET_VRING_CALL, self.set_vring_call),
            answer_with_fds(SET_VRING_ERR, self.set_vring_err),
            answer(SET_VRING_ENABLE, self.set_vring_enable),
            answer(GET_INFLIGHT_FD, self.get_inflight_fd),
            answer_with_fds(SET_INFLIGHT_FD, self.set_inflight_fd),
            answer(GET_CONFIG, self.get_config),
            answer(SET_CONFIG, self.set_config),
            answer_with_fds(GPU_SET_SOCKET, self.gpu_set_socket),
            answer(RESET_DEVICE, self.reset_device),
            answer(SET_STATUS, self.set_status),
            answer(GET_STATUS, self.get_status),
            answer_with_fds(SET_BACKEND_REQ_FD, self.set_backend_req_fd),
        ]

    async def run(self) -> None:
        """Serves the front-end until it goes or breaks the protocol; raises only SetupError, of the device.

        However it ends, the rings stop, after the requests that they have in flight.
        """
        self.device.attach(self._config_is_new.set)
        try:
            await self.serve()
            log.info("the front-end has gone")
        except FrontendError as error:
            log.error("closing the connection: %s", error)
        except SetupError:
            raise
        except Exception:
            log.exception("closing the connection after a fault of this program")
        except asyncio.CancelledError:
            self._patience = SHORT_PATIENCE
            raise
        finally:
            await self._close()

    def fail(self, error: Exception) -> None:
        """Ends the connection because of an error outside its requests."""
        self.channel.abort(error)

    def hurry(self) -> None:
        """Another front-end wants to be served: requests in flight get no more than a moment."""
        self._patience = SHORT_PATIENCE
        if self._giving_up is not None:
            self._give_up_after(SHORT_PATIENCE)

    def describe(self) -> list[str]:
        """What was negotiated, and every ring that was set up, as it is now: a line of each for the log."""
        size = sum(region.size for region in self.memory.regions)
        negotiated = (
            f"a front-end is connected, features={self.features:#x} "
            f"protocol_features={self.protocol_features:#x} status={self.status:#x} "
            f"regions={len(self.memory.regions)} memory={size}"
        )
        used = [vring for vring in self.vrings if vring.size]
        lines = [negotiated, *(vring.describe(self.memory, self.features) for vring in used)]
        if unused := len(self.vrings) - len(used):
            lines.append(f"rings that were not set up: {unused}")
        return lines

    async def _close(self) -> None:
        self.device.detach()
        try:
            await self._stop_announcing()
            await self._end_rings(self._patience)
        finally:
            # A ring that still runs does so because the program is to end meanwhile.
            await self._end_rings(SHORT_PATIENCE)
            for vring in self.vrings:
                vring.close()
            self.memory = GuestMemory()  # unmaps it now, not when a reference cycle is collected
            self.channel.close()
            self.device.negotiated = 0
            self._reset()
            gc.collect()  # a handler's last frames, if an exception's traceback has them, hold the ring

    async def _end_rings(self, patience: float) -> None:
        """Stops all rings; gives up what is in flight after so many seconds."""
        self._give_up_after(patience)
        try:
            await asyncio.gather(*(vring.stop() for vring in self.vrings))
        finally:
            self._call_off()

    def _give_up_after(self, seconds: float) -> None:
        self._call_off()
        self._giving_up = asyncio.get_running_loop().call_later(seconds, self._give_up)

    def _give_up(self) -> None:
        for vring in self.vrings:
            vring.give_up()

    def _call_off(self) -> None:
        if self._giving_up is not None:
            self._giving_up.cancel()
            self._giving_up = None

    # --- Negotiation ------------------------------------------------------------------------------------

    @property
    def _offered_features(self) -> int:
        return RING_FEATURES | self.device.features

    @property
    def _offered_protocol_features(self) -> int:
        has_config = bool(self.device.read_config())
        return PROTOCOL_FEATURES | (mask(ProtocolFeature.CONFIG) if has_config else 0)

    def get_features(self, _: Empty) -> U64:
        return U64(self._offered_features)

    async def set_features(self, features: U64) -> None:
        if surplus := features.value & ~(self._offered_features | TOLERATED_FEATURES):
            raise RefusedRequest(f"SET_FEATURES with {surplus:#x}, which was not offered")
        if features.value != self.features and (started := [ring for ring in self.vrings if ring.started]):
            if any(vring.enabled for vring in started):
                raise RefusedRequest(
                    f"SET_FEATURES {features.value:#x} while rings run with {self.features:#x}"
                )
            await self._stop(started)  # another driver: libkrun only disables the rings of the one before
        self.features = features.value
        self.device.negotiated = features.value & self.device.features
        if not features.value & mask(Feature.PROTOCOL_FEATURES):
            for vring in self.vrings:
                vring.set_enabled(enabled=True)

    def set_owner(self, _: Empty) -> None:
        """Nothing depends on it. libkrun says it again for each driver that comes."""

    def reset_owner(self, _: Empty) -> None:
        # Deprecated; the specification recommends no more than disabling all rings.
        self._disable_all()

    def get_protocol_features(self, _: Empty) -> U64:
        return U64(self._offered_protocol_features)

    def set_protocol_features(self, features: U64) -> None:
        if surplus := features.value & ~self._offered_protocol_features:
            raise RefusedRequest(f"SET_PROTOCOL_FEATURES with {surplus:#x}, which was not offered")
        self.protocol_features = features.value

    def get_queue_num(self, _: Empty) -> U64:
        return U64(len(self.vrings))

    # --- Memory -----------------------------------------------------------------------------------------

    def set_mem_table(self, table: MemoryTable, fds: Fds) -> None:
        if table.regions and not fds:
            raise RefusedRequest(
                f"SET_MEM_TABLE with {len(table.regions)} regions and no fds: "
                "is share=on missing from the front-end's memory backend?"
            )
        if len(fds) != len(table.regions):
            raise RefusedRequest(f"SET_MEM_TABLE with {len(table.regions)} regions and {len(fds)} fds")
        self._replace_memory(GuestMemory(map(_map_region, table.regions, fds)))

    def get_max_mem_slots(self, _: Empty) -> U64:
        return U64(MAX_REGIONS)

    def add_mem_reg(self, region: SingleRegion, fds: Fds) -> None:
        self._replace_memory(GuestMemory([*self.memory.regions, _map_region(region, fds[0])]))

    def rem_mem_reg(self, region: SingleRegion) -> None:
        rest = [kept for kept in self.memory.regions if not _same_region(kept, region)]
        if len(rest) == len(self.memory.regions):
            raise RefusedRequest(f"REM_MEM_REG of a region that is not there: {region}")
        self._replace_memory(GuestMemory(rest))

    def _replace_memory(self, memory: GuestMemory) -> None:
        """Moves everything to another map, or, if a running ring is not in it, nothing."""
        try:
            for vring in self.vrings:
                vring.remap(memory)
        except RefusedRequest:
            for vring in self.vrings:
                vring.remap(self.memory)
            raise
        self.memory = memory

    # --- Vrings -----------------------------------------------------------------------------------------

    def _vring(self, index: int) -> Vring:
        if index >= len(self.vrings):
            raise RefusedRequest(f"vring {index} of a device with {len(self.vrings)}")
        return self.vrings[index]

    async def set_vring_num(self, state: VringState) -> None:
        vring = self._vring(state.index)
        vring.check_size(state.num)
        await self._set_up_anew(vring)
        vring.set_size(state.num)

    def set_vring_addr(self, addr: VringAddr) -> None:
        self._vring(addr.index).set_addr(addr, self.memory)

    async def set_vring_base(self, state: VringState) -> None:
        vring = self._vring(state.index)
        vring.check_base(state.num)
        await self._set_up_anew(vring)
        vring.set_base(state.num)

    async def get_vring_base(self, state: VringState) -> VringState:
        vring = self._vring(state.index)
        await self._stop([vring])
        base = vring.base
        return VringState(state.index, base)

    def set_vring_kick(self, vring_fd: VringFd, fds: Fds) -> None:
        if self.negotiated(ProtocolFeature.CONFIG) and not (self._config_was_read or self._running.is_set()):
            # The driver was set up on another connection; what its front-end knows may be old.
            self._config_was_read = True
            self._config_is_new.set()
            self.device.resume()
        self._vring(vring_fd.index).start(_one_fd(vring_fd, fds), self.memory, self.features)
        self._note_running()

    def set_vring_call(self, vring_fd: VringFd, fds: Fds) -> None:
        self._vring(vring_fd.index).set_call(_one_fd(vring_fd, fds))

    def set_vring_err(self, vring_fd: VringFd, fds: Fds) -> None:
        self._vring(vring_fd.index).set_err(_one_fd(vring_fd, fds))

    def set_vring_enable(self, state: VringState) -> None:
        if state.num > 1:
            raise RefusedRequest(f"SET_VRING_ENABLE of vring {state.index} with {state.num}, not 0 or 1")
        self._vring(state.index).set_enabled(enabled=bool(state.num))

    async def _set_up_anew(self, vring: Vring) -> None:
        """Stops the ring if it is disabled: User-mode Linux disables rings, and says no more."""
        if vring.started and not vring.enabled:
            await self._stop([vring])

    async def _stop(self, vrings: Sequence[Vring]) -> None:
        """Stops rings, after the requests in flight; FrontendGone if nobody waits for that any more."""
        stopping = asyncio.create_task(_stop_all(vrings))
        leaving = asyncio.create_task(self.channel.hang_up())
        tasks = (stopping, leaving)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if not stopping.done():
                raise FrontendGone("the front-end has gone while rings were stopping")
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        self._note_running()

    def _disable_all(self) -> None:
        for vring in self.vrings:
            vring.set_enabled(enabled=False)

    def _note_running(self) -> None:
        if any(vring.started for vring in self.vrings):
            self._running.set()
        else:
            self._running.clear()

    # --- Inflight area ----------------------------------------------------------------------------------

    def get_inflight_fd(self, wanted: Inflight) -> Reply[Inflight]:
        self._check_queues(wanted)
        area, fd = make_area(wanted.num_queues, wanted.queue_size)
        return Reply(area, [fd])

    def set_inflight_fd(self, area: Inflight, fds: Fds) -> None:
        self._check_queues(area)
        self._set_inflight(map_area(area, fds[0]))

    def _check_queues(self, area: Inflight) -> None:
        if not 0 < area.num_queues <= len(self.vrings):
            raise RefusedRequest(f"an inflight area for {area.num_queues} queues of {len(self.vrings)}")

    def _set_inflight(self, queues: Sequence[InflightQueue]) -> None:
        """What rings that start from now on use; those beyond the queues, nothing."""
        for vring, inflight in zip_longest(self.vrings, queues):
            vring.inflight = inflight

    # --- Device -----------------------------------------------------------------------------------------

    def get_config(self, wanted: ConfigSpace) -> ConfigSpace:
        space = self.device.read_config()
        self._config_was_read = True
        size = len(wanted.data)
        end = wanted.offset + size
        # Some ask for all that there may be (SPDK): what no field lies in is zeroes.
        if wanted.offset >= len(space) or end > ConfigSpace.MAX_SIZE:
            raise RefusedRequest(f"GET_CONFIG of bytes {wanted.offset} to {end} of {len(space)}")
        return ConfigSpace(wanted.offset, space[wanted.offset : end].ljust(size, b"\0"), wanted.flags)

    def set_config(self, config: ConfigSpace) -> None:
        space_size = len(self.device.read_config())
        end = config.offset + len(config.data)
        try:
            if end > space_size:
                raise RefusedRequest(f"SET_CONFIG of bytes {config.offset} to {end} of {space_size}")
            self.device.write_config(config.offset, config.data)
        except RefusedRequest as error:
            raise RefusedDriver(str(error)) from None

    def gpu_set_socket(self, _: Empty, fds: Fds) -> None:
        self.device.show_on(connected_stream(fds[0], GPU_SET_SOCKET))

    async def reset_device(self, _: Empty) -> None:
        self._disable_all()
        await self._stop(self.vrings)
        self.status = 0
        self._reset()

    def set_status(self, status: U64) -> None:
        if status.value > 0xFF:
            raise RefusedRequest(f"SET_STATUS {status.value:#x} is more than a byte")
        self.status = status.value
        if not self.status and not self._running.is_set():
            self._reset()

    def _reset(self) -> None:
        self._set_inflight([])  # the driver will begin anew
        self.device.reset()

    def get_status(self, _: Empty) -> U64:
        return U64(self.status)

    # --- Requests of the back-end -----------------------------------------------------------------------

    async def set_backend_req_fd(self, _: Empty, fds: Fds) -> None:
        backend = BackendChannel(fds[0])
        await self._stop_announcing()
        self._backend = backend
        self._announcer = asyncio.create_task(self._announce(backend), name="backend requests")

    async def _announce(self, backend: BackendChannel) -> None:
        """Tells the front-end of config changes; while the device is suspended they wait."""
        try:
            while await self._config_is_new.wait():
                await self._running.wait()
                self._config_is_new.clear()
                if self.negotiated(ProtocolFeature.CONFIG):
                    await backend.request(CONFIG_CHANGE_MSG, Empty())
        except ConnectionError as error:
            log.info("no requests to the front-end any more: %s", error)

    async def _stop_announcing(self) -> None:
        if self._announcer is not None:
            self._announcer.cancel()
            await asyncio.wait([self._announcer])
        if self._backend is not None:
            self._backend.close()


async def _stop_all(vrings: Sequence[Vring]) -> None:
    for vring in vrings:
        await vring.stop()


def _map_region(region: MemoryRegion | SingleRegion, fd: Fd) -> Region:
    return Region(
        fd.fileno(),
        guest_addr=region.guest_addr,
        user_addr=region.user_addr,
        size=region.size,
        offset=region.mmap_offset,
    )


def _same_region(mapped: Region, named: SingleRegion) -> bool:
    return (mapped.guest_addr, mapped.user_addr, mapped.size) == (
        named.guest_addr,
        named.user_addr,
        named.size,
    )


def _one_fd(vring_fd: VringFd, fds: Fds) -> Fd | None:
    if vring_fd.has_fd != bool(fds):
        raise RefusedRequest(f"vring {vring_fd.index}: {len(fds)} fds, and the flag says {vring_fd.has_fd:d}")
    return fds[0] if fds else None
