"""What goes along with a guest: what its driver knows of the ports, and which of them it has open."""

from collections.abc import Mapping

from vhost_user_console.line import Size
from vhost_user_console.port import Port
from vhost_user_console.told import UNKNOWN, Told
from vhostd import Layout, RefusedRequest, Unpacker, u8, u16, u32


class ConsoleState(Layout):
    """A saved state, of version 1; a PortState for each port follows."""

    is_ready: u8  # the driver has said that it may be told of ports
    ports: u32


class PortState(Layout):
    """A port's part of it."""

    number: u32
    flags: u16
    cols: u16  # as the driver was told
    rows: u16


ADDED, READY, CONSOLE, NAMED, OPEN, GUEST_OPEN = (1 << bit for bit in range(6))
FLAGS = (1 << 6) - 1


def save(ports: Mapping[int, Port], *, is_ready: bool) -> bytes:
    """The state as bytes."""
    parts = [_state_of(port).pack() for port in ports.values()]
    return ConsoleState(int(is_ready), len(parts)).pack() + b"".join(parts)


def load(state: bytes, ports: Mapping[int, Port]) -> tuple[bool, dict[int, PortState]]:
    """What `save` gave; RefusedRequest for a state of other ports than these."""
    unpacker = Unpacker(state)
    head = unpacker.unpack(ConsoleState)
    if head.ports != len(ports):
        raise RefusedRequest(f"a state of {head.ports} ports where there are {len(ports)}")
    states = [unpacker.unpack(PortState) for _ in range(head.ports)]
    unpacker.end()
    if head.is_ready > 1 or any(each.flags & ~FLAGS for each in states):
        raise RefusedRequest("a state with flags that mean nothing")
    if [each.number for each in states] != list(ports):
        raise RefusedRequest("a state of ports with other numbers")
    return bool(head.is_ready), {each.number: each for each in states}


def told_by(state: PortState) -> Told:
    """What the driver knows, by a port's state."""
    told = Told()
    told.is_added = bool(state.flags & ADDED)
    told.is_ready = bool(state.flags & READY)
    told.is_console = bool(state.flags & CONSOLE)
    told.has_name = bool(state.flags & NAMED)
    told.is_open = bool(state.flags & OPEN)
    told.was_closed = told.is_open  # who is there is somebody else
    told.size = Size(state.cols, state.rows)
    return told


def _state_of(port: Port) -> PortState:
    told = port.told
    flags = (
        (ADDED, told.is_added),
        (READY, told.is_ready),
        (CONSOLE, told.is_console),
        (NAMED, told.has_name),
        (OPEN, told.is_open),
        (GUEST_OPEN, port.guest_is_open),
    )
    return PortState(port.number, sum(bit for bit, on in flags if on), *(told.size or UNKNOWN))
