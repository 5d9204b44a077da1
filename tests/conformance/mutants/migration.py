"""Faults of the dirty log, and of the device's state."""

import os
import signal
from functools import partial
from typing import Any

from tests.conformance.faults import SILENCE, breaks, replace
from tests.conformance.rings import Lair, when_pushing
from vhostd.errors import MalformedMessage, RefusedRequest
from vhostd.ring import Chain, DirtyLog
from vhostd.vhost_user.device_state import NO_FD, DeviceState
from vhostd.vhost_user.messages import SET_LOG_BASE, Log, StateTransfer
from vhostd.vhost_user.migration import Migration
from vhostd.virtio import saved_state
from vhostd.virtio.state import VirtioState
from vhostd.wire.rows import U64


@breaks("MIG-1", "SET_LOG_BASE got no reply", patience=SILENCE)
def log_without_reply() -> None:
    """SET_LOG_BASE has no reply."""
    from vhostd.vhost_user.dispatch import Dispatcher

    async def send(before: Any, self: Dispatcher, message: Any, reply: Any) -> bool:
        if message.request == SET_LOG_BASE.request:
            return True
        done: bool = await before(self, message, reply)
        return done

    replace(Dispatcher, "_send", send)


@breaks("MIG-2", "and has not marked it")
def marks_nothing() -> None:
    """Nothing is marked."""
    replace(VirtioState, "log_writes", lambda before, self, _log: before(self, None))


def _spoils_the_log(byte: int) -> None:
    """Has all of the log overwritten before each chain is used."""
    logs: list[tuple[int, Log]] = []

    def set_log_base(before: Any, self: Migration, place: Log, fds: Any) -> Any:
        logs.append((os.dup(fds[0].fileno()), place))
        return before(self, place, fds)

    def spoil(_lair: Lair, _chain: Chain) -> None:
        for fd, place in logs[-1:]:
            os.pwrite(fd, bytes([byte]) * place.mmap_size, place.mmap_offset)

    replace(Migration, "set_log_base", set_log_base)
    when_pushing(spoil)


@breaks("MIG-3", "is marked, and the device had nothing to write there")
def marks_all() -> None:
    """Each chain marks all pages."""
    _spoils_the_log(0xFF)


@breaks("MIG-5", "it has taken marks away that were there")
def marks_the_last_only() -> None:
    """Each chain has the marks of those before taken away."""
    _spoils_the_log(0)


@breaks("MIG-4", "and has not marked it")
def log_from_the_begin() -> None:
    """The log's offset is ignored."""

    def set_log_base(before: Any, self: Migration, place: Log, fds: Any) -> Any:
        return before(self, Log(place.mmap_size, 0), fds)

    replace(Migration, "set_log_base", set_log_base)


@breaks("MIG-6", "and has not marked it")
def first_log_only() -> None:
    """A second log is passed over."""

    def set_log_base(before: Any, self: Migration, place: Log, fds: Any) -> Any:
        return before(self, place, fds) if self._log is None else U64(0)

    replace(Migration, "set_log_base", set_log_base)


@breaks("MIG-7", "it marks pages though LOG_ALL was taken back")
def logs_for_ever() -> None:
    """Logging never ends."""

    def log_writes(before: Any, self: VirtioState, log: DirtyLog | None) -> None:
        if log is not None:
            before(self, log)

    replace(VirtioState, "log_writes", log_writes)


@breaks("MIG-8", "and has not marked it")
def rings_that_run() -> None:
    """Rings that run when logging begins are logged, and no others."""
    known: list[DirtyLog | None] = [None]

    def log_writes(before: Any, self: VirtioState, log: DirtyLog | None) -> None:
        if log is not known[-1] and (log is None or self.is_running):
            before(self, log)
        known.append(log)

    replace(VirtioState, "log_writes", log_writes)


@breaks("MIG-9", "was ended by SIGBUS")
def any_log() -> None:
    """A log that is too short is used."""
    _dies_of_refusal()


@breaks("MIG-10", "was ended by SIGBUS")
def any_file() -> None:
    """A log whose file is too short is used."""
    _dies_of_refusal()


def _dies_of_refusal() -> None:
    def set_log_base(before: Any, self: Migration, place: Log, fds: Any) -> Any:
        try:
            return before(self, place, fds)
        except RefusedRequest:
            signal.raise_signal(signal.SIGBUS)

    replace(Migration, "set_log_base", set_log_base)


@breaks("MIG-11", "SET_LOG_FD closed the connection")
def no_log_fd() -> None:
    """SET_LOG_FD is not known."""

    def set_log_fd(_before: Any, _self: Migration, _empty: Any, _fds: Any) -> None:
        raise MalformedMessage("SET_LOG_FD")

    replace(Migration, "set_log_fd", set_log_fd)


@breaks("MIG-12", "its state was not saved")
def never_well() -> None:
    """CHECK_DEVICE_STATE always says that something is wrong."""

    async def check(_before: Any, _self: DeviceState, _empty: Any) -> U64:
        return U64(1)

    replace(DeviceState, "check_device_state", check)


@breaks("MIG-14", "and CHECK_DEVICE_STATE says that all is well")
def always_well() -> None:
    """CHECK_DEVICE_STATE never says that something is wrong."""
    _all_is_well()


@breaks("MIG-15", "and CHECK_DEVICE_STATE says that all is well")
def half_is_enough() -> None:
    """What is missing of a state is not missed."""
    _all_is_well()


def _all_is_well() -> None:
    async def check(before: Any, self: DeviceState, empty: Any) -> U64:
        await before(self, empty)
        return U64(0)

    replace(DeviceState, "check_device_state", check)


@breaks("MIG-17", "direction 2, phase 0 was accepted")
def any_direction() -> None:
    """Whatever is no load is a save."""

    def set_device_state_fd(before: Any, self: DeviceState, wanted: StateTransfer, fds: Any) -> Any:
        return before(self, StateTransfer(wanted.direction & 1, 0), fds)

    replace(DeviceState, "set_device_state_fd", set_device_state_fd)


@breaks("MIG-13", "a state that it has saved itself was refused")
def never_loads() -> None:
    """No state is loaded."""

    def set_device_state_fd(before: Any, self: DeviceState, wanted: StateTransfer, fds: Any) -> Any:
        if wanted.direction == StateTransfer.LOAD:
            raise RefusedRequest("it cannot be loaded")
        return before(self, wanted, fds)

    replace(DeviceState, "set_device_state_fd", set_device_state_fd)


@breaks("MIG-16", "the state was saved while a ring ran")
def saves_at_any_time() -> None:
    """A state is saved, whatever runs."""

    def set_device_state_fd(_before: Any, self: DeviceState, _wanted: StateTransfer, fds: Any) -> U64:
        self._begin("saved", fds[0], partial(self._save, saved_state.save(self._state.device)))
        return NO_FD

    replace(DeviceState, "set_device_state_fd", set_device_state_fd)


@breaks("MIG-18", "was ended by SIGKILL")
def dies_with_a_transfer() -> None:
    """A front-end that goes while a state is transferred ends the program."""

    async def close(before: Any, self: DeviceState) -> None:
        if self._transfer is not None and not self._transfer.done():
            signal.raise_signal(signal.SIGKILL)
        await before(self)

    replace(DeviceState, "close", close)


@breaks("MIG-19", "was ended by SIGKILL")
def relies_on_a_transfer() -> None:
    """CHECK_DEVICE_STATE without a transfer ends the program."""

    async def check(before: Any, self: DeviceState, empty: Any) -> U64:
        if self._transfer is None:
            signal.raise_signal(signal.SIGKILL)
        result: U64 = await before(self, empty)
        return result

    replace(DeviceState, "check_device_state", check)
