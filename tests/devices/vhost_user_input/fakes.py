"""A guest without a guest: rings made of lists, and Linux's input core in a few lines."""

import asyncio
import struct
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from vhost_user_input.events import (
    ABS_MT_FIRST,
    ABS_MT_LAST,
    ABS_MT_SLOT,
    ABS_MT_TRACKING_ID,
    EV_ABS,
    EV_KEY,
    EV_SW,
    EV_SYN,
    EVENT,
    SYN_REPORT,
)
from vhost_user_input.origin import Origin
from vhost_user_input.state import State
from vhostd import BadRequest

if TYPE_CHECKING:
    from vhostd import Virtqueue

Event = tuple[int, int, int]

EV_REL = 0x02
SYN = (EV_SYN, SYN_REPORT, 0)


def pack(*events: Event) -> bytes:
    return b"".join(EVENT.pack(*event) for event in events)


def unpack(data: bytes) -> list[Event]:
    return [struct.unpack("<HHi", data[at : at + 8]) for at in range(0, len(data), 8)]


def split(events: list[Event]) -> list[list[Event]]:
    """Cuts at every SYN_REPORT, which is left out; what follows the last one is the last item."""
    reports: list[list[Event]] = [[]]
    for event in events:
        if event[:2] == (EV_SYN, SYN_REPORT):
            reports.append([])
        else:
            reports[-1].append(event)
    return reports


class FakeChain:
    def __init__(self, data: bytes = b"", writable: int = 0) -> None:
        self.data = data
        self.writable = writable
        self.written = b""

    @property
    def readable(self) -> int:
        return len(self.data)

    def read(self, size: int) -> bytes:
        if size > len(self.data):
            raise BadRequest(f"{len(self.data)} bytes to read, not {size}")
        read, self.data = self.data[:size], self.data[size:]
        return read

    def write(self, data: bytes) -> None:
        if len(data) > self.writable:
            raise BadRequest(f"{self.writable} bytes to write, not {len(data)}")
        self.writable -= len(data)
        self.written += data


class FakeQueue:
    """A ring that the test fills with chains; `pushed` are those that came back."""

    def __init__(self) -> None:
        self.pushed: list[FakeChain] = []
        self._chains: deque[FakeChain] = deque()
        self._stopped = False
        self._change = asyncio.Event()

    @property
    def virtqueue(self) -> "Virtqueue":
        return cast("Virtqueue", self)

    def add(self, chain: FakeChain) -> None:
        self._chains.append(chain)
        self._change.set()

    def stop(self) -> None:
        self._stopped = True
        self._change.set()

    def pop(self) -> FakeChain | None:
        return self._chains.popleft() if self._chains and not self._stopped else None

    async def ready(self) -> bool:
        while not self._stopped and not self._chains:
            self._change.clear()
            await self._change.wait()
        return not self._stopped

    def push(self, chain: FakeChain) -> None:
        self.pushed.append(chain)


class FakeEventq(FakeQueue):
    """The eventq of a driver that, while it is `eager`, puts every used buffer back at once."""

    def __init__(self, size: int = 4) -> None:
        super().__init__()
        self.events: list[Event] = []
        self.eager = True
        self._news = asyncio.Event()
        for _ in range(size):
            self.add(FakeChain(writable=8))

    def push(self, chain: FakeChain) -> None:
        self.events += unpack(chain.written)
        self._news.set()
        if self.eager:
            self.add(FakeChain(writable=8))

    async def received(self, count: int) -> list[Event]:
        """Waits until the guest has got `count` events."""
        while len(self.events) < count:
            self._news.clear()
            await self._news.wait()
        return self.events


class FakeSink:
    """A sink that listens and has room while `open`; keeps what it gets."""

    def __init__(self, *, is_open: bool = True, slots: bool = False) -> None:
        self.events: list[Event] = []
        self.forgotten: list[Event] = []  # what came while it was shut
        self.states: list[State] = []
        self.waiting = 0
        self.origins: set[Origin] = set()
        self.state = State(slots=slots)
        self._slots = slots
        self._watchers: list[Callable[[bool], None]] = []
        self._open = asyncio.Event()
        self._news = asyncio.Event()
        if is_open:
            self.open()

    @property
    def listening(self) -> bool:
        return self._open.is_set()

    def open(self) -> None:
        self._open.set()
        for call in self._watchers:
            call(True)

    def shut(self) -> None:
        self._open.clear()
        for call in self._watchers:
            call(False)

    def origin(self) -> Origin:
        return Origin(self, slots=self._slots)

    def watch(self, call: Callable[[bool], None]) -> None:
        self._watchers.append(call)
        call(self.listening)

    def deliver(self, reports: bytes) -> None:
        self.state.apply(reports)
        kept = self.events if self.listening else self.forgotten
        kept += unpack(reports)
        self._news.set()

    def replace(self, state: State) -> None:
        self.state = state
        self.states.append(state)
        self._news.set()

    async def room(self) -> None:
        self.waiting += 1
        self._news.set()
        try:
            while not self._open.is_set():
                await self._open.wait()
        finally:
            self.waiting -= 1

    async def until(
        self, *, events: int = 0, waiting: int = 0, states: int = 0, forgotten: int = 0
    ) -> list[Event]:
        while (
            len(self.events) < events
            or self.waiting < waiting
            or len(self.states) < states
            or len(self.forgotten) < forgotten
        ):
            self._news.clear()
            await self._news.wait()
        return self.events


class Linux:
    """What Linux's input core makes of events: the state that its clients see."""

    def __init__(self, slots: int) -> None:
        self.keys: set[int] = set()
        self.switches: set[int] = set()
        self.axes: dict[int, int] = {}
        self.slot = 0
        self.contacts: list[dict[int, int]] = [{ABS_MT_TRACKING_ID: -1} for _ in range(slots)]
        self.changes: list[Event] = []  # what clients see

    def apply(self, kind: int, code: int, value: int) -> None:
        if self._changes(kind, code, value):
            self.changes.append((kind, code, value))

    def _changes(self, kind: int, code: int, value: int) -> bool:
        if kind in (EV_KEY, EV_SW):
            on = self.keys if kind == EV_KEY else self.switches
            before = code in on
            on.add(code) if value else on.discard(code)
            return before != bool(value)
        if kind == EV_REL:
            return value != 0
        if kind != EV_ABS:
            return (kind, code) != (EV_SYN, 3)
        if code == ABS_MT_SLOT:
            if 0 <= value < len(self.contacts):
                self.slot = value
            return False
        of_contact = ABS_MT_FIRST <= code <= ABS_MT_LAST
        axes = self.contacts[self.slot] if of_contact else self.axes
        before_value = axes.get(code, 0)
        axes[code] = value
        return before_value != value

    @property
    def state(self) -> object:
        contacts = [{code: at for code, at in axes.items() if at} for axes in self.contacts]
        return self.keys, self.switches, {a: at for a, at in self.axes.items() if at}, contacts, self.slot
