"""Faults of a GPU in 2D, and of what it tells its display."""

import signal
from typing import Any

from tests.conformance.faults import SILENCE, breaks, replace
from vhost_user_gpu.card import Card, Request
from vhost_user_gpu.commands import CommandError, Header, Response
from vhost_user_gpu.resource import Picture
from vhost_user_gpu.scanout import Cursor, Scanout
from vhostd.errors import GuestError

SHOWN = "the display did not get the picture"


def forgive(*methods: str) -> None:
    """Has these commands succeed whether they are possible or not."""

    def forgiving(before: Any, self: Card, *arguments: Any) -> Any:
        try:
            return before(self, *arguments)
        except (CommandError, GuestError, MemoryError):
            return None

    for method in methods:
        replace(Card, method, forgiving)


def ignore(owner: type, method: str) -> None:
    """Has a method do nothing."""
    replace(owner, method, lambda *_: None)


@breaks("GPU-1", "monitor, width, height", program="gpu")
def monitors_of_its_own() -> None:
    """It tells of a monitor that nobody has."""

    def get_display_info(before: Any, self: Card, *arguments: Any) -> Any:
        kind, data = before(self, *arguments)
        return kind, data[:8] + (1).to_bytes(4, "little") + data[12:]

    replace(Card, "get_display_info", get_display_info)


@breaks("GPU-2", "where a block has 128", program="gpu")
def short_edid() -> None:
    """The EDID is cut."""

    def get_edid(before: Any, self: Card, *arguments: Any) -> Any:
        kind, data = before(self, *arguments)
        return kind, (64).to_bytes(4, "little") + data[4:]

    replace(Card, "get_edid", get_edid)


@breaks("GPU-3", SHOWN, program="gpu", patience=SILENCE)
def flush_is_lost() -> None:
    """A flush shows nothing."""
    ignore(Card, "flush")


@breaks("GPU-4", "answered with 0x1205", program="gpu")
def first_range_only() -> None:
    """Of the backing only the first range is known."""

    def attach(before: Any, self: Card, named: Any, chain: Any) -> Any:
        count = named.nr_entries
        return (
            before(self, type(named)(named.resource_id, 1), chain)
            if count > 1
            else before(self, named, chain)
        )

    replace(Card, "attach_backing", attach)


@breaks("GPU-5", SHOWN, program="gpu", patience=SILENCE)
def transfers_all() -> None:
    """A transfer takes the whole picture."""

    def fill(before: Any, self: Picture, backing: Any, rect: Any, offset: int) -> None:
        before(self, backing, type(rect)(0, 0, self.width, self.height), 0)

    replace(Picture, "fill_from", fill)
    _flush_all()


@breaks("GPU-6", SHOWN, program="gpu", patience=SILENCE)
def flushes_all() -> None:
    """A flush shows the whole picture."""
    _flush_all()


@breaks("GPU-7", "the monitor was not switched off", program="gpu", patience=SILENCE)
def stays_on() -> None:
    """A monitor is never switched off."""

    def set_scanout(before: Any, self: Card, wanted: Any, *arguments: Any) -> Any:
        return before(self, wanted, *arguments) if wanted.resource_id else None

    replace(Card, "set_scanout", set_scanout)


@breaks("GPU-9", "fence", program="gpu")
def fences_are_lost() -> None:
    """No answer names a fence."""

    def respond(before: Any, self: Request, answer: Any) -> None:
        self.header = Header(self.header.type, 0, 0, 0, 0)
        before(self, answer)

    replace(Request, "respond", respond)


@breaks("GPU-10", "of no resource was done", program="gpu")
def any_resource() -> None:
    """What does not exist is transferred and shown all the same."""
    forgive("transfer_to_host_2d", "flush", "set_scanout", "unref", "detach_backing")


@breaks("GPU-11", "was done", program="gpu")
def any_rectangle() -> None:
    """A rectangle outside its resource is shown all the same."""
    forgive("transfer_to_host_2d", "flush", "set_scanout")


@breaks("GPU-12", "SET_SCANOUT of monitor 16 was done", program="gpu")
def any_monitor() -> None:
    """A monitor that is not there shows things all the same."""
    forgive("set_scanout")


@breaks("GPU-13", "RESOURCE_CREATE_2D of id 0 was done", program="gpu")
def any_id() -> None:
    """Resources may have any id."""
    forgive("create_2d")


@breaks("GPU-14", "was done", program="gpu")
def any_size() -> None:
    """Pictures may be of any size."""
    forgive("create_2d")


@breaks("GPU-15", "from outside the guest's memory was done", program="gpu")
def any_backing() -> None:
    """Backing may be anywhere."""
    forgive("attach_backing", "transfer_to_host_2d")


@breaks("GPU-16", "from offset", program="gpu")
def any_offset() -> None:
    """A transfer may begin anywhere."""
    forgive("transfer_to_host_2d")


@breaks("GPU-17", "command 0x1ff was answered with 0x1100", program="gpu")
def any_command() -> None:
    """A command that is not known is done."""
    forgive("_execute")


@breaks("GPU-18", "was ended by SIGKILL", program="gpu")
def cut_commands() -> None:
    """A header is read whether it is there or not."""

    def init(before: Any, self: Request, chain: Any) -> None:
        if chain.readable < Header.SIZE:
            signal.raise_signal(signal.SIGKILL)
        before(self, chain)

    replace(Request, "__init__", init)


@breaks("GPU-19", "was answered with 0x1200", program="gpu")
def one_error() -> None:
    """All errors are the same."""

    def execute(before: Any, self: Card, *arguments: Any) -> Any:
        kind, data = before(self, *arguments)
        return (Response.ERR_UNSPEC if kind.is_error else kind), data

    replace(Card, "execute", execute)


@breaks("GPU-20", "answered with 0x1203", program="gpu")
def shown_resources_stay() -> None:
    """A resource that is shown cannot go."""
    ignore(Card, "unref")


@breaks("GPU-21", "the cursor is at 0, 0", program="gpu")
def cursor_in_the_corner() -> None:
    """The cursor is always in the corner."""
    replace(Cursor, "move", lambda move, self, _x, _y: move(self, 0, 0))


@breaks("GPU-22", "64 GiB of pictures were created", program="gpu")
def no_limit() -> None:
    """Nobody counts."""
    replace(Card, "create_2d", lambda _before, _self, _new, _chain=None: None)


@breaks("GPU-23", "the cursor is still shown", program="gpu", patience=SILENCE)
def cursor_stays() -> None:
    """The cursor is never hidden."""
    ignore(Cursor, "hide")


def _flush_all() -> None:
    def flush(before: Any, self: Scanout, rect: Any) -> None:
        before(self, type(rect)(0, 0, self.rect.width, self.rect.height))

    replace(Scanout, "flush", flush)
