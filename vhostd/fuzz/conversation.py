"""Valid messages, in the order in which front-ends send them; the grammar puts the mutations between."""

from collections.abc import Callable, Iterator
from random import Random
from typing import Any

from vhostd.fuzz.operation import Connect, Send
from vhostd.fuzz.place import MEMORIES, USER, ring_areas
from vhostd.fuzz.traits import PROTOCOL, Traits
from vhostd.vhost_user import messages as m
from vhostd.vhost_user.messages import ProtocolFeature
from vhostd.virtio.vocabulary import Feature, mask
from vhostd.wire.framing import NEED_REPLY, VERSION
from vhostd.wire.rows import U64, Empty, Row

START = 1 << 15 | 1 << 31  # where a packed ring begins


class Conversation:
    """One connection's messages. What is negotiated in it is drawn once, at its beginning."""

    def __init__(self, random: Random, traits: Traits) -> None:
        self._random = random
        most = max(1, min(traits.queues, 3))
        packed = bool(traits.features >> Feature.RING_PACKED & 1) and random.random() < 0.4
        self.opening = Connect(
            rings=random.randrange(most) + 1, size=random.choice((4, 16, 64, 64, 256)), packed=packed
        )
        unwanted = mask(Feature.LOG_ALL, Feature.ACCESS_PLATFORM) if random.random() < 0.9 else 0
        unwanted |= 0 if packed else mask(Feature.RING_PACKED)
        self.features = traits.features & ~unwanted
        if random.random() < 0.2:
            self.features &= ~(1 << random.randrange(64)) | PROTOCOL
        left_out = mask(ProtocolFeature.XEN_MMAP)
        if random.random() < 0.2:
            left_out |= random.getrandbits(23)
        self.protocol = traits.protocol & ~left_out
        self._user = 0 if self.protocol >> ProtocolFeature.GPA_ADDRESSES & 1 else USER

    @property
    def acked(self) -> int:
        """The flags of a message to which there is an answer, if that was agreed on."""
        return VERSION | (NEED_REPLY if self.protocol >> ProtocolFeature.REPLY_ACK & 1 else 0)

    def greeting(self) -> Iterator[Send]:
        """What is agreed on, and the memory."""
        yield self.send(m.GET_FEATURES, Empty())
        if self.features & PROTOCOL:
            yield self.send(m.GET_PROTOCOL_FEATURES, Empty())
            yield Send(
                request=m.SET_PROTOCOL_FEATURES.request, flags=VERSION, payload=U64(self.protocol).pack()
            )
        yield self.send(m.SET_OWNER, Empty())
        yield self.send(m.SET_FEATURES, U64(self.features))
        yield self.share()
        if self._random.random() < 0.5:
            for row in (m.SET_BACKEND_REQ_FD, m.GPU_SET_SOCKET):
                if row.exists(self.protocol):
                    yield self.valid(row)

    def start(self, ring: int) -> Iterator[Send]:
        """Starts a ring."""
        yield self.send(m.SET_VRING_NUM, m.VringState(ring, self.opening.size))
        yield self.send(m.SET_VRING_BASE, m.VringState(ring, START if self.opening.packed else 0))
        yield self.send(m.SET_VRING_ADDR, self._addr(ring))
        yield self.send(m.SET_VRING_CALL, m.VringFd(ring), f"call{ring}")
        yield self.send(m.SET_VRING_ERR, m.VringFd(ring), f"err{ring}")
        yield self.send(m.SET_VRING_KICK, m.VringFd(ring), f"kick{ring}")
        yield self.send(m.SET_VRING_ENABLE, m.VringState(ring, 1))

    def restart(self, ring: int) -> Iterator[Send]:
        """Starts a ring that was stopped, as far as it has not kept what it was told."""
        yield self.send(m.SET_VRING_BASE, m.VringState(ring, START if self.opening.packed else 0))
        yield self.send(m.SET_VRING_ADDR, self._addr(ring))
        yield self.send(m.SET_VRING_KICK, m.VringFd(ring), f"kick{ring}")

    def stop(self, ring: int) -> Send:
        """Stops a ring."""
        return self.send(m.GET_VRING_BASE, m.VringState(ring, 0))

    def share(self) -> Send:
        """Shares the guest's memory: all of it, at times only the first one or two."""
        count = self._random.choice((1, 2, 3, 3, 3))
        table = m.MemoryTable(tuple(m.MemoryRegion(*self._place(i)) for i in range(count)))
        return self.send(m.SET_MEM_TABLE, table, *(f"memory{i}" for i in range(count)))

    def send(self, row: Row[Any, Any], payload: Any, *fds: str) -> Send:
        """A message; with a request for an ack where there is no other answer."""
        flags = VERSION if row.reply else self.acked
        return Send(request=row.request, flags=flags, payload=payload.pack(), fds=fds)

    def valid(self, row: Row[Any, Any]) -> Send:
        """A message of this row that means something."""
        make = _VALID.get(row.request)
        if make is not None:
            return make(self)
        payload = U64(self._random.randrange(2)) if row.payload is U64 else row.payload.unpack(_zeros(row))
        return self.send(row, payload, *["file"] * row.fds[0])

    def _ring(self) -> int:
        return self._random.randrange(self.opening.rings)

    def _addr(self, ring: int) -> m.VringAddr:
        desc, avail, used = ring_areas(ring, self.opening.size, packed=self.opening.packed)
        user = 0 if self.features >> Feature.ACCESS_PLATFORM & 1 else self._user
        return m.VringAddr(ring, 0, desc + user, used + user, avail + user, 0)

    def _place(self, memory: int) -> tuple[int, int, int, int]:
        at, size = MEMORIES[memory]
        return at, size, at + self._user, 0

    def _iotlb(self) -> Send:
        kind = self._random.choice((m.IotlbType.UPDATE, m.IotlbType.INVALIDATE))
        at, size, user, _ = self._place(self._random.randrange(3))
        return self.send(m.IOTLB_MSG, m.Iotlb(at, size, user, 3, kind))

    def _config(self, row: Row[Any, Any]) -> Send:
        return self.send(
            row, m.ConfigSpace(self._random.choice((0, 0, 8)), bytes(self._random.choice((1, 8, 60))))
        )

    def _state(self) -> Send:
        direction = self._random.choice((m.StateTransfer.SAVE, m.StateTransfer.LOAD))
        fd = "pipe" if direction == m.StateTransfer.LOAD else "reader"
        return self.send(m.SET_DEVICE_STATE_FD, m.StateTransfer(direction, m.StateTransfer.STOPPED), fd)

    def _inflight(self) -> m.Inflight:
        return m.Inflight(1 << 16, 0, self.opening.rings, self.opening.size)

    def _region(self, row: Row[Any, Any]) -> Send:
        memory = self._random.randrange(3)
        fds = (f"memory{memory}",) if row is m.ADD_MEM_REG else ()
        return self.send(row, m.SingleRegion(0, *self._place(memory)), *fds)

    def _vring_fd(self, row: Row[Any, Any], name: str) -> Send:
        ring = self._ring()
        return self.send(row, m.VringFd(ring), f"{name}{ring}")


def _zeros(row: Row[Any, Any]) -> bytes:
    return bytes(getattr(row.payload, "SIZE", 64))


_VALID: dict[int, Callable[[Conversation], Send]] = {
    m.SET_FEATURES.request: lambda c: c.send(m.SET_FEATURES, U64(c.features)),
    m.SET_MEM_TABLE.request: Conversation.share,
    m.SET_LOG_BASE.request: lambda c: c.send(m.SET_LOG_BASE, m.Log(1 << 20, 0), "file"),
    m.SET_LOG_FD.request: lambda c: c.send(m.SET_LOG_FD, Empty(), "eventfd"),
    m.SET_VRING_NUM.request: lambda c: c.send(m.SET_VRING_NUM, m.VringState(c._ring(), c.opening.size)),
    m.SET_VRING_ADDR.request: lambda c: c.send(m.SET_VRING_ADDR, c._addr(c._ring())),
    m.SET_VRING_BASE.request: lambda c: c.send(m.SET_VRING_BASE, m.VringState(c._ring(), 0)),
    m.GET_VRING_BASE.request: lambda c: c.stop(c._ring()),
    m.SET_VRING_KICK.request: lambda c: c._vring_fd(m.SET_VRING_KICK, "kick"),
    m.SET_VRING_CALL.request: lambda c: c._vring_fd(m.SET_VRING_CALL, "call"),
    m.SET_VRING_ERR.request: lambda c: c._vring_fd(m.SET_VRING_ERR, "err"),
    m.SET_PROTOCOL_FEATURES.request: lambda c: c.send(m.SET_PROTOCOL_FEATURES, U64(c.protocol)),
    m.SET_VRING_ENABLE.request: lambda c: c.send(m.SET_VRING_ENABLE, m.VringState(c._ring(), 1)),
    m.SET_BACKEND_REQ_FD.request: lambda c: c.send(m.SET_BACKEND_REQ_FD, Empty(), "backend"),
    m.GPU_SET_SOCKET.request: lambda c: c.send(m.GPU_SET_SOCKET, Empty(), "display"),
    m.IOTLB_MSG.request: Conversation._iotlb,
    m.GET_CONFIG.request: lambda c: c._config(m.GET_CONFIG),
    m.SET_CONFIG.request: lambda c: c._config(m.SET_CONFIG),
    m.GET_INFLIGHT_FD.request: lambda c: c.send(m.GET_INFLIGHT_FD, c._inflight()),
    m.SET_INFLIGHT_FD.request: lambda c: c.send(m.SET_INFLIGHT_FD, c._inflight(), "file"),
    m.VRING_KICK.request: lambda c: c.send(m.VRING_KICK, m.VringState(c._ring(), 0)),
    m.ADD_MEM_REG.request: lambda c: c._region(m.ADD_MEM_REG),
    m.REM_MEM_REG.request: lambda c: c._region(m.REM_MEM_REG),
    m.SET_STATUS.request: lambda c: c.send(m.SET_STATUS, U64(c._random.choice((0, 1, 3, 11, 15, 64, 128)))),
    m.SET_DEVICE_STATE_FD.request: Conversation._state,
}
