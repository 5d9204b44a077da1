"""Faults of an input device."""

import signal
from typing import Any

from tests.conformance.faults import breaks, replace
from vhost_user_input.config import Config
from vhost_user_input.device import Input
from vhostd.errors import RefusedRequest
from vhostd.ring import Chain
from vhostd.vhost_user.config import Config as Messages
from vhostd.vhost_user.messages import ConfigSpace
from vhostd.virtio.virtqueue import Virtqueue

ID_NAME, EV_BITS, ABS_INFO = 0x01, 0x11, 0x12
SIZE, UNION = 2, 8


def answers(change: Any) -> None:
    """Has a function change the config space: it gets select, subsel, and the whole."""
    replace(Config, "read", lambda read, self: change(*read(self)[:2], read(self)))


def with_answer(space: bytes, answer: bytes) -> bytes:
    """A config space with another answer."""
    return space[:SIZE] + bytes([len(answer)]) + space[SIZE + 1 : UNION] + answer.ljust(128, b"\0")


@breaks("INP-1", "ID_NAME is not UTF-8", program="input")
def name_in_latin() -> None:
    """Its name is in another encoding."""
    answers(lambda select, _, space: with_answer(space, b"Tast\xe4r") if select == ID_NAME else space)


@breaks("INP-2", "select 0xee, subsel 0x0 has 4 bytes", program="input")
def answers_anything() -> None:
    """What does not exist has an answer too."""
    answers(lambda select, _, space: with_answer(space, b"none") if select == 0xEE else space)


@breaks("INP-3", "EV_BITS differs for types", program="input")
def one_late() -> None:
    """An answer is that of the selection before."""
    before_last: list[bytes] = [bytes(136), bytes(136)]

    def write(before: Any, self: Config, offset: int, data: bytes) -> None:
        before_last.append(before_last[-1])
        before(self, offset, data)
        before_last[-1] = plain(self)

    plain = Config.read
    replace(Config, "write", write)
    replace(Config, "read", lambda _read, _self: before_last[-2])


@breaks("INP-4", "EV_BITS is empty", program="input")
def no_events() -> None:
    """It has no events."""
    answers(lambda select, _, space: with_answer(space, b"") if select == EV_BITS else space)


@breaks("INP-5", "has no ABS_INFO", program="input", options="--event-device=tablet")
def no_ranges() -> None:
    """Its axes have no range."""
    answers(lambda select, _, space: with_answer(space, b"") if select == ABS_INFO else space)


@breaks("INP-7", "was ended by SIGKILL", program="input")
def whole_events_only() -> None:
    """It relies on whole events."""

    def status_event(before: Any, self: Input, chain: Chain) -> Any:
        if chain.readable % 8:
            signal.raise_signal(signal.SIGKILL)
        return before(self, chain)

    replace(Input, "_status_event", status_event)


@breaks("INP-8", "a buffer came back with 0 bytes", program="input")
def gives_buffers_back() -> None:
    """A status event has a buffer for events come back, with nothing in it."""
    queues: list[Virtqueue] = []

    def enable(before: Any, self: Virtqueue, *, on: bool) -> None:
        queues.append(self)
        before(self, on=on)

    def write_back(before: Any, self: Input, queue: Virtqueue) -> None:
        if (chain := queues[0].pop()) is not None:
            queues[0].push(chain)
        before(self, queue)

    replace(Virtqueue, "enable", enable)
    replace(Input, "_write_back", write_back)


@breaks("INP-9", "0 of 136 bytes can be read", program="input")
def short_config() -> None:
    """Its config space ends behind the longest answer."""

    def get_config(before: Any, self: Config, wanted: ConfigSpace) -> Any:
        if len(wanted.data) > 100:
            raise RefusedRequest("too much")
        return before(self, wanted)

    replace(Messages, "get_config", get_config)
