"""The graphics card: executes commands, one short method each, on resources and scan-outs.

Nothing here waits or uses a socket. Every command gets one of the specification's responses (virtio 1.3,
5.7.6.7), at once or, from a renderer, later (virgl/). A command that fails changes nothing.
"""

import logging
import struct
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, TypeVar

from vhost_user_gpu.answer import DONE, Answer, Pending
from vhost_user_gpu.commands import (
    COMMANDS,
    GET_CAPSET,
    GET_CAPSET_INFO,
    GET_DISPLAY_INFO,
    GET_EDID,
    MAX_SCANOUTS,
    MOVE_CURSOR,
    RESOURCE_ASSIGN_UUID,
    RESOURCE_ATTACH_BACKING,
    RESOURCE_CREATE_2D,
    RESOURCE_CREATE_BLOB,
    RESOURCE_DETACH_BACKING,
    RESOURCE_FLUSH,
    RESOURCE_UNREF,
    SET_SCANOUT,
    SET_SCANOUT_BLOB,
    TRANSFER_TO_HOST_2D,
    UPDATE_CURSOR,
    AttachBacking,
    CommandError,
    EdidReply,
    GetCapset,
    GetCapsetInfo,
    GetEdid,
    Header,
    ResourceCreate2d,
    ResourceCreateBlob,
    ResourceFlush,
    ResourceId,
    Response,
    SetScanout,
    SetScanoutBlob,
    TransferToHost2d,
    UpdateCursor,
)
from vhost_user_gpu.outputs import Outputs
from vhost_user_gpu.pixels import PIXEL, Format
from vhost_user_gpu.rect import NOTHING, Rect
from vhost_user_gpu.resource import RANGE_COST, RESOURCE_COST, Blob, Picture, Resource, Resources
from vhost_user_gpu.scanout import Framebuffer, Scanout, cursor_shape
from vhostd import Chain, Empty, Gather, GuestError, Layout, Row

log = logging.getLogger(__name__)

MEMORY_ENTRY = struct.Struct("<QI4x")  # struct virtio_gpu_mem_entry: guest address, length
RANGE = struct.Struct("<QQ")  # the same in a saved state, where entries that meet are one
MAX_ENTRIES = 1 << 16  # of a backing: 256 MiB, page by page
ENTRY_WORK = 1 << 10  # what an entry counts as work: the bytes that could be copied in the same time
MAX_SIDE = 32767  # pixels of a picture; pixman, which QEMU uses, has no larger ones

P = TypeVar("P", bound=Layout)
Outcome = Answer | Pending | None  # None is DONE
Execute = Callable[[Any, Chain], Outcome]


def pair(command: Row[P, Any], method: Callable[[P, Chain], Outcome]) -> tuple[Row[P, Any], Execute]:
    """A command and its method; mypy checks that the method takes the command's payload."""
    return command, method


@cache
def _unfenced(kind: Response) -> bytes:
    return Header(kind, 0, 0, 0, 0).pack()


class Request:
    """A command from the driver: its header, its row if there is one, and the rest of the chain."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        try:
            self.header = chain.unpack(Header)
        except GuestError:
            self.header = Header(0, 0, 0, 0, 0)
        self.command = COMMANDS.get(self.header.type)

    @property
    def is_about_monitors(self) -> bool:
        """Whether the front-end can answer it better than this program."""
        return self.command in (GET_DISPLAY_INFO, GET_EDID)

    def respond(self, answer: Answer) -> None:
        """Writes the response, as far as the chain has room. A fenced command's response names the fence.

        If the chain's memory is not shared, the driver gets no response.
        """
        kind, content = answer
        asked = self.header
        if asked.flags & Header.FENCE:
            flags = asked.flags & (Header.FENCE | Header.RING_IDX)
            header = Header(kind, flags, asked.fence_id, asked.ctx_id, asked.ring_idx).pack()
        else:
            header = _unfenced(kind)
        data = header + content
        try:
            self.chain.write(data[: self.chain.writable])
        except GuestError as error:
            log.warning("no response: %s", error)


class Card:
    """The guest's resources, within `memory` bytes, and its scan-outs.

    `changed` is called with each scan-out that has news for the front-end.
    """

    def __init__(self, outputs: Outputs, memory: int, changed: Callable[[Scanout], None]) -> None:
        self.outputs = outputs
        self.resources = Resources(memory)
        self.scanouts = [Scanout(number) for number in range(MAX_SCANOUTS)]
        self.awaited: dict[Resource, bytes] = {}  # backings that a saved state has named, as packed ranges
        self.usable = MAX_SCANOUTS  # how many scan-outs the guest may use
        self.work = 0  # bytes copied, and other work in the same unit; the device pauses after enough of it
        self._methods = self._table_of_methods()
        self._changed = changed
        self._lit: list[Scanout] = []  # the scan-outs that show something

    @property
    def has_3d(self) -> bool:
        """Whether the guest has anything that only a renderer has."""
        return False

    def execute(self, request: Request, features: int) -> Answer | Pending:
        """Executes the request, if these features allow it; returns its response, now or later."""
        try:
            return self._execute(request, features) or DONE
        except CommandError as error:
            log.warning("%s: %s", request.command or "command", error)
            return error.response, b""
        except MemoryError as error:
            log.warning("%s: out of memory: %s", request.command, error)
            return Response.ERR_OUT_OF_MEMORY, b""
        except GuestError as error:  # a chain too short for its command, or a backing outside of memory
            log.warning("%s: %s", request.command or "command", error)
            return Response.ERR_INVALID_PARAMETER, b""

    def reset(self) -> None:
        """Forgets all resources, and shows nothing any more."""
        for scanout in self.scanouts:
            scanout.reset()
            self._changed(scanout)
        self._lit.clear()
        self.awaited.clear()
        self.resources.clear()
        self.outputs.reset()

    # --- Another program's card -------------------------------------------------------------------------

    def another(self) -> "Card":
        """An empty card with the same limits, which shows nothing to anybody."""
        return Card(self.outputs, self.resources.limit, lambda _: None)

    def become(self, other: "Card") -> None:
        """Has and shows what the other card has, instead of its own. The other one is of no use then."""
        self.reset()
        self.resources, self.awaited = other.resources, other.awaited
        for scanout, loaded in zip(self.scanouts, other.scanouts, strict=True):
            scanout.cursor = loaded.cursor
            self._show(scanout, loaded.framebuffer, loaded.rect)
            self._repaint(scanout)

    def look_up(self, gather: Callable[[Iterator[tuple[int, int]], int], Gather]) -> None:
        """Looks the awaited backings up with a running ring's `Virtqueue.gather`: there is a memory now.

        A resource whose backing is not there, or takes too much, has none from now on.
        """
        awaited, self.awaited = self.awaited, {}
        for resource, ranges in awaited.items():
            try:
                most = self.resources.room // RANGE_COST
                self.resources.attach(resource, gather(RANGE.iter_unpack(ranges), most))
            except (CommandError, GuestError, MemoryError) as error:
                log.warning("resource %d has lost its backing: %s", resource.number, error)
            if isinstance(resource, Blob):
                for scanout in self._showing(resource):
                    self._repaint(scanout)

    def _repaint(self, scanout: Scanout) -> None:
        if scanout.framebuffer is not None:
            scanout.repaint()
        self._changed(scanout)

    def _execute(self, request: Request, features: int) -> Outcome:
        command = request.command
        if command is None or not command.exists(features):
            raise CommandError(Response.ERR_UNSPEC, f"{request.header.type:#x} is not a command here")
        layout: type[Layout] = command.payload
        payload = request.chain.unpack(layout)
        return self._methods[command](payload, request.chain)

    def _table_of_methods(self) -> dict[Row[Any, Any], Execute]:
        """Each command with its method, which takes the payload, and the rest of the chain."""
        return dict(
            (
                pair(GET_DISPLAY_INFO, self.get_display_info),
                pair(GET_EDID, self.get_edid),
                pair(GET_CAPSET_INFO, self.get_capset_info),
                pair(GET_CAPSET, self.get_capset),
                pair(RESOURCE_CREATE_2D, self.create_2d),
                pair(RESOURCE_CREATE_BLOB, self.create_blob),
                pair(RESOURCE_UNREF, self.unref),
                pair(RESOURCE_ATTACH_BACKING, self.attach_backing),
                pair(RESOURCE_DETACH_BACKING, self.detach_backing),
                pair(RESOURCE_ASSIGN_UUID, self.assign_uuid),
                pair(TRANSFER_TO_HOST_2D, self.transfer_to_host_2d),
                pair(SET_SCANOUT, self.set_scanout),
                pair(SET_SCANOUT_BLOB, self.set_scanout_blob),
                pair(RESOURCE_FLUSH, self.flush),
                pair(UPDATE_CURSOR, self.update_cursor),
                pair(MOVE_CURSOR, self.move_cursor),
            )
        )

    # --- Monitors ---------------------------------------------------------------------------------------

    def get_display_info(self, _: Empty, _chain: Chain) -> Answer:
        return Response.OK_DISPLAY_INFO, self.outputs.for_driver()

    def get_edid(self, asked: GetEdid, _chain: Chain) -> Answer:
        edid = self.outputs.edid(self._scanout(asked.scanout).number)
        return Response.OK_EDID, EdidReply(len(edid), 0, edid).pack()

    def get_capset_info(self, asked: GetCapsetInfo, _chain: Chain) -> Answer:
        raise CommandError(Response.ERR_INVALID_PARAMETER, f"there is no capability set {asked.capset_index}")

    def get_capset(self, asked: GetCapset, _chain: Chain) -> Answer:
        raise CommandError(Response.ERR_INVALID_PARAMETER, f"there is no capability set {asked.capset_id}")

    # --- Resources --------------------------------------------------------------------------------------

    def create_2d(self, new: ResourceCreate2d, _chain: Chain | None = None) -> None:
        kind = _format(new.format)
        _check_size(new.width, new.height)
        self.resources.reserve(new.resource_id, RESOURCE_COST + new.width * new.height * PIXEL)
        try:
            self.resources.add(Picture(new.resource_id, kind, new.width, new.height))
        except OSError as error:
            raise CommandError(Response.ERR_OUT_OF_MEMORY, f"the host has none: {error}") from None

    def create_blob(self, new: ResourceCreateBlob, chain: Chain | None = None) -> None:
        if new.blob_mem != ResourceCreateBlob.GUEST or not new.size:
            raise CommandError(
                Response.ERR_INVALID_PARAMETER, f"a blob of {new.size} bytes of memory {new.blob_mem}"
            )
        backing = self._gather(chain, new.nr_entries) if chain is not None and new.nr_entries else None
        if backing is not None and len(backing) < new.size:
            raise CommandError(
                Response.ERR_INVALID_PARAMETER, f"{len(backing)} bytes for a blob of {new.size}"
            )
        self.resources.reserve(new.resource_id, RESOURCE_COST, backing)
        self.resources.add(Blob(new.resource_id, new.size), backing)

    def unref(self, named: ResourceId, _chain: Chain | None = None) -> None:
        resource = self.resources[named.resource_id]
        for scanout in self._showing(resource):
            self._show(scanout, None, NOTHING)
        self.resources.remove(resource)

    def attach_backing(self, named: AttachBacking, chain: Chain) -> None:
        resource = self.resources[named.resource_id]
        if resource.backing is not None:
            raise CommandError(Response.ERR_UNSPEC, f"resource {resource.number} has a backing already")
        self.resources.attach(resource, self._gather(chain, named.nr_entries))
        self._note_other_memory(resource)

    def detach_backing(self, named: ResourceId, _chain: Chain) -> None:
        resource = self.resources[named.resource_id]
        if resource.backing is None:
            raise CommandError(Response.ERR_UNSPEC, f"resource {resource.number} has no backing")
        self.resources.detach(resource)
        self._note_other_memory(resource)

    def assign_uuid(self, named: ResourceId, _chain: Chain) -> Answer:
        return Response.OK_RESOURCE_UUID, self.resources[named.resource_id].uuid

    def transfer_to_host_2d(self, part: TransferToHost2d, _chain: Chain) -> None:
        resource = self.resources[part.resource_id]
        rect = _rect(part)
        if not isinstance(resource, Picture):
            return  # a blob is the guest's own memory
        if not rect.fits(resource.width, resource.height):
            raise CommandError(Response.ERR_INVALID_PARAMETER, f"{rect} of resource {resource.number}")
        if resource.backing is None:
            raise CommandError(Response.ERR_UNSPEC, f"resource {resource.number} has no backing")
        if rect:
            resource.fill_from(resource.backing, rect, part.offset)
            self.work += rect.width * rect.height * PIXEL

    def _gather(self, chain: Chain, count: int) -> Gather:
        """The guest memory that the next `count` entries name."""
        if not 0 < count <= MAX_ENTRIES:
            raise CommandError(Response.ERR_INVALID_PARAMETER, f"a backing of {count} entries")
        self.work += count * ENTRY_WORK
        entries = MEMORY_ENTRY.iter_unpack(chain.read(count * MEMORY_ENTRY.size))
        # An entry that crosses from one memory region into the next gives two ranges. That is very rare.
        return chain.gather(entries, most=min(2 * MAX_ENTRIES, self.resources.room // RANGE_COST))

    # --- Scan-outs --------------------------------------------------------------------------------------

    def set_scanout(self, wanted: SetScanout, _chain: Chain | None = None) -> None:
        scanout = self._scanout(wanted.scanout_id)
        if not wanted.resource_id:
            self._show(scanout, None, NOTHING)
            return
        resource = self.resources[wanted.resource_id]
        if not isinstance(resource, Picture):
            raise CommandError(Response.ERR_INVALID_PARAMETER, f"resource {resource.number} is a blob")
        self._show(scanout, Framebuffer.of(resource), _rect(wanted))

    def set_scanout_blob(self, wanted: SetScanoutBlob, _chain: Chain | None = None) -> None:
        scanout = self._scanout(wanted.scanout_id)
        if not wanted.resource_id:
            self._show(scanout, None, NOTHING)
            return
        resource = self.resources[wanted.resource_id]
        if not isinstance(resource, Blob):
            raise CommandError(Response.ERR_INVALID_PARAMETER, f"resource {resource.number} is no blob")
        kind = _format(wanted.format)
        size = (wanted.fb_width, wanted.fb_height)
        _check_size(*size)
        if wanted.fb_width * wanted.fb_height * PIXEL > self.resources.limit:  # too large for a copy
            raise CommandError(Response.ERR_OUT_OF_MEMORY, f"{size} pixels")
        framebuffer = Framebuffer(resource, kind, *size, wanted.stride, wanted.offset)
        if wanted.stride < wanted.fb_width * PIXEL or framebuffer.size > resource.size:
            raise CommandError(
                Response.ERR_INVALID_PARAMETER,
                f"{size} pixels at {wanted.offset}, {wanted.stride} bytes a row, in {resource.size} bytes",
            )
        self._show(scanout, framebuffer, _rect(wanted))

    def flush(self, part: ResourceFlush, _chain: Chain) -> None:
        resource = self.resources[part.resource_id]
        rect = _rect(part)
        if isinstance(resource, Picture) and not rect.fits(resource.width, resource.height):
            raise CommandError(Response.ERR_INVALID_PARAMETER, f"{rect} of resource {resource.number}")
        for scanout in self._showing(resource):
            scanout.flush(rect)
            self._changed(scanout)

    def _scanout(self, number: int) -> Scanout:
        if number >= self.usable:
            raise CommandError(
                Response.ERR_INVALID_SCANOUT_ID, f"there is no scan-out {number} of {self.usable}"
            )
        return self.scanouts[number]

    def _show(self, scanout: Scanout, framebuffer: Framebuffer | None, rect: Rect) -> None:
        if framebuffer is not None and not (rect and rect.fits(framebuffer.width, framebuffer.height)):
            raise CommandError(
                Response.ERR_INVALID_PARAMETER,
                f"{rect} of a picture of {framebuffer.width} x {framebuffer.height}",
            )
        scanout.show(framebuffer, rect)
        self._lit = [scanout for scanout in self.scanouts if scanout.framebuffer is not None]
        self._changed(scanout)

    def _showing(self, resource: Resource) -> list[Scanout]:
        return [scanout for scanout in self._lit if scanout.shows(resource)]

    def _note_other_memory(self, resource: Resource) -> None:
        """Introduces a blob anew: the front-end may share its old backing as a dmabuf."""
        if isinstance(resource, Blob):
            for scanout in self._showing(resource):
                scanout.replaced = True
                self._changed(scanout)

    # --- Cursors ----------------------------------------------------------------------------------------

    def update_cursor(self, wanted: UpdateCursor, _chain: Chain) -> None:
        scanout = self._scanout(wanted.scanout_id)
        cursor = scanout.cursor
        if not wanted.resource_id:
            cursor.hide()
        elif (shape := cursor_shape(self.resources[wanted.resource_id])) is not None:
            cursor.reshape(shape, wanted.hot_x, wanted.hot_y)
        else:
            raise CommandError(
                Response.ERR_INVALID_PARAMETER, f"resource {wanted.resource_id} has another size than cursors"
            )
        cursor.move(wanted.x, wanted.y)
        self._changed(scanout)

    def move_cursor(self, wanted: UpdateCursor, _chain: Chain) -> None:
        scanout = self._scanout(wanted.scanout_id)
        # By the specification only the position counts (5.7.6.10). But Windows' driver hides the cursor by
        # resource 0, and all other devices accept that.
        if wanted.resource_id:
            scanout.cursor.show()
        else:
            scanout.cursor.hide()
        scanout.cursor.move(wanted.x, wanted.y)
        self._changed(scanout)


def _rect(where: Any) -> Rect:
    return Rect(where.x, where.y, where.width, where.height)


def _check_size(width: int, height: int) -> None:
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
        raise CommandError(Response.ERR_INVALID_PARAMETER, f"a picture of {width} x {height}")


def _format(number: int) -> Format:
    try:
        return Format(number)
    except ValueError:
        raise CommandError(Response.ERR_INVALID_PARAMETER, f"there is no pixel format {number}") from None
