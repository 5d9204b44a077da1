"""Faults of the config space and of the status."""

import signal
from typing import Any

from tests.conformance.faults import SILENCE, breaks, replace
from vhost_user_gpu.config import Config as GpuConfig
from vhostd.vhost_user.config import Config
from vhostd.vhost_user.messages import ConfigSpace
from vhostd.vhost_user.status import Status
from vhostd.virtio.state import VirtioState
from vhostd.virtio.vocabulary import DeviceStatus
from vhostd.wire.framing import Dialect
from vhostd.wire.rows import U64


@breaks("CONF-1", "the reply to a read of 4 bytes has 268 bytes", program="gpu")
def whole_config() -> None:
    """Every read is answered by all that there can be."""

    def get_config(before: Any, self: Config, wanted: ConfigSpace) -> Any:
        return before(self, ConfigSpace(0, bytes(ConfigSpace.MAX_SIZE), wanted.flags))

    def encode(before: Any, self: Dialect, *arguments: Any, **keywords: Any) -> Any:
        return before(self, *arguments, **{**keywords, "most": None})

    replace(Config, "get_config", get_config)
    replace(Dialect, "encode", encode)


@breaks("CONF-2", "in a read of all", program="gpu")
def offset_is_ignored() -> None:
    """Every read begins at the start."""
    replace(VirtioState, "read_config", lambda read, self, _offset, size: read(self, 0, size))


@breaks("CONF-3", "at offset 0xfffff000", program="gpu")
def other_memory() -> None:
    """What is beyond the end is whatever lies there."""

    def get_config(before: Any, self: Config, wanted: ConfigSpace) -> Any:
        if wanted.offset > 1 << 16:
            return ConfigSpace(wanted.offset, b"\xde" * len(wanted.data), 0)
        return before(self, wanted)

    replace(Config, "get_config", get_config)


@breaks("CONF-4", "the program was ended by SIGKILL", program="gpu")
def size_is_trusted() -> None:
    """The size that is said is made room for, and that is too much."""
    before = ConfigSpace.unpack

    def unpack(data: bytes) -> ConfigSpace:
        if int.from_bytes(data[4:8], "little") > 1 << 30:
            signal.raise_signal(signal.SIGKILL)
        return before(data)

    ConfigSpace.unpack = unpack  # type: ignore[method-assign]  # it is a class method


@breaks("CONF-5", "the config space was", program="gpu")
def write_wraps() -> None:
    """A write beyond the end goes to its start."""
    space = bytearray(16)

    def write(_before: Any, _self: Any, offset: int, data: bytes) -> None:
        space[offset % 16 : offset % 16 + len(data)] = data

    replace(VirtioState, "write_config", write)
    replace(GpuConfig, "read", lambda _before, _self: bytes(space[:16]))


@breaks("CONF-6", "bytes 8 to 12 were written", program="gpu")
def everything_is_writable() -> None:
    """A driver may write every field."""
    written: dict[int, bytes] = {}

    def read(before: Any, self: GpuConfig) -> bytes:
        space = bytearray(before(self))
        for offset, data in written.items():
            space[offset : offset + len(data)] = data
        return bytes(space)

    replace(GpuConfig, "write", lambda _before, _self, offset, data: written.update({offset: data}))
    replace(GpuConfig, "read", read)


@breaks("CONF-7", "the program was ended by SIGKILL", program="gpu")
def missing_payload() -> None:
    """A payload that is not there is read all the same."""
    before = ConfigSpace.unpack

    def unpack(data: bytes) -> ConfigSpace:
        if len(data) < 12 + int.from_bytes(data[4:8], "little"):
            signal.raise_signal(signal.SIGKILL)
        return before(data)

    ConfigSpace.unpack = unpack  # type: ignore[method-assign]  # it is a class method


@breaks("CONF-8", "the status is 0x1, and 0x3 was written")
def status_stays() -> None:
    """Only the first status counts."""
    replace(
        VirtioState, "set_status", lambda write, self, status: None if self.status else write(self, status)
    )


@breaks("CONF-9", "after a reset")
def status_survives_a_reset() -> None:
    """A status of 0 is taken for no bits that were set."""

    async def set_status(before: Any, self: Status, status: U64) -> None:
        if status.value:
            await before(self, status)

    replace(Status, "set_status", set_status)


@breaks("CONF-10", "on a new connection")
def status_of_the_last() -> None:
    """The status is kept for the next front-end."""
    kept: list[int] = []

    def write(before: Any, self: VirtioState, status: int) -> None:
        kept.append(status)
        before(self, status)

    replace(VirtioState, "set_status", write)
    replace(Status, "get_status", lambda get, self, empty: U64(get(self, empty).value or (kept or [0])[-1]))


@breaks("CONF-11", "without DEVICE_NEEDS_RESET")
def broken_and_silent() -> None:
    """A broken ring is not told of by the status."""
    replace(VirtioState, "_broke", lambda _before, _self: None)


@breaks("CONF-12", "no CONFIG_CHANGE_MSG came", program="gpu", patience=SILENCE)
def needs_reset_unseen() -> None:
    """The status has the bit, and nobody is told."""

    def broke(_before: Any, self: VirtioState) -> None:
        self.status |= DeviceStatus.DEVICE_NEEDS_RESET

    replace(VirtioState, "_broke", broke)
