"""VirglCard: a graphics card whose 3D commands a renderer executes.

What a driver says is checked here before the renderer hears it. The renderer's answers come later. Meanwhile
other commands are executed. 2D pictures stay in this program. So they outlive a renderer that crashes.
"""

import logging
import struct
from collections.abc import Callable
from functools import partial
from typing import Any

from vhost_user_gpu.answer import DONE, Answer, Pending
from vhost_user_gpu.card import Card, Execute, Outcome, Request, pair
from vhost_user_gpu.commands import (
    CTX_ATTACH_RESOURCE,
    CTX_CREATE,
    CTX_DESTROY,
    CTX_DETACH_RESOURCE,
    GET_CAPSET,
    GET_CAPSET_INFO,
    RESOURCE_ATTACH_BACKING,
    RESOURCE_CREATE_3D,
    RESOURCE_DETACH_BACKING,
    RESOURCE_FLUSH,
    RESOURCE_UNREF,
    SET_SCANOUT,
    SUBMIT_3D,
    TRANSFER_FROM_HOST_3D,
    TRANSFER_TO_HOST_2D,
    TRANSFER_TO_HOST_3D,
    UPDATE_CURSOR,
    AttachBacking,
    CommandError,
    CtxCreate,
    CtxResource,
    GetCapset,
    GetCapsetInfo,
    GpuFeature,
    Header,
    ResourceCreate3d,
    ResourceFlush,
    ResourceId,
    Response,
    SetScanout,
    Submit3d,
    TransferHost3d,
    TransferToHost2d,
    UpdateCursor,
)
from vhost_user_gpu.dmabuf import Dmabuf
from vhost_user_gpu.outputs import Outputs
from vhost_user_gpu.rect import NOTHING, Rect
from vhost_user_gpu.scanout import Scanout, cursor_shape
from vhost_user_gpu.virgl import messages
from vhost_user_gpu.virgl.arena import MOST
from vhost_user_gpu.virgl.engine import Engine
from vhost_user_gpu.virgl.messages import Exported
from vhost_user_gpu.virgl.remote import Fence
from vhost_user_gpu.virgl.texture import Texture
from vhostd import Chain, Empty, Fd, Row
from vhostd.vhost_user.gpu_messages import CURSOR_SIDE

log = logging.getLogger(__name__)

CAPSET_INFO = struct.Struct("<III4x")  # struct virtio_gpu_resp_capset_info: id, latest version, size
MOST_CONTEXTS = 256  # at a time; each is a GL context
# Textures whose pixels are kept here, each by an fd; 16 monitors and their cursors take fewer.
MOST_SHOWN = 256
MOST_FOURCC = 0x7FFF_FFFF
MOST_SAMPLES = 32
MOST_LEVELS = 16
MOST_SIDE = 1 << 16  # of a texture, in any direction; GL has a lower limit
CAPSET_MASK = 0xFF  # of `context_init`
RINGS = 64  # of a context
WORD = 4  # bytes; commands are made of words


class VirglCard(Card):
    """A card with an engine, which it owns."""

    def __init__(
        self, outputs: Outputs, memory: int, changed: Callable[[Scanout], None], engine: Engine
    ) -> None:
        super().__init__(outputs, memory, changed)
        self._engine = engine
        self._capsets = engine.abilities.capsets
        self._contexts: set[int] = set()
        self._asked = Header(0, 0, 0, 0, 0)  # of the command at hand
        self._features = 0
        self._shapes: dict[int, object] = {}  # by scan-outs: what their cursors are to look like soon

    @property
    def has_3d(self) -> bool:
        """Whether the guest has anything in a renderer, which nobody can save."""
        return bool(self._contexts) or any(isinstance(each, Texture) for each in self.resources)

    def execute(self, request: Request, features: int) -> Answer | Pending:
        self._asked, self._features = request.header, features
        answer = super().execute(request, features)
        # A driver takes a fence to mean that all the fences before have signalled.
        if isinstance(answer, tuple) and self._asked.flags & Header.FENCE:
            return self._engine.after_fences(answer)
        return answer

    def reset(self) -> None:
        super().reset()
        self._contexts.clear()
        self._shapes.clear()
        self._engine.reset()

    def _table_of_methods(self) -> dict[Row[Any, Any], Execute]:
        return super()._table_of_methods() | dict(
            (
                pair(GET_CAPSET_INFO, self.capset_info),
                pair(GET_CAPSET, self.capset),
                pair(CTX_CREATE, self.create_context),
                pair(CTX_DESTROY, self.destroy_context),
                pair(CTX_ATTACH_RESOURCE, self.attach_resource),
                pair(CTX_DETACH_RESOURCE, self.detach_resource),
                pair(RESOURCE_CREATE_3D, self.create_3d),
                pair(RESOURCE_UNREF, self.unref_any),
                pair(RESOURCE_ATTACH_BACKING, self.attach_backing_to_any),
                pair(RESOURCE_DETACH_BACKING, self.detach_backing_from_any),
                pair(SUBMIT_3D, self.submit),
                pair(TRANSFER_TO_HOST_2D, self.transfer_to_any_2d),
                pair(TRANSFER_TO_HOST_3D, partial(self.transfer_3d, to_host=True)),
                pair(TRANSFER_FROM_HOST_3D, partial(self.transfer_3d, to_host=False)),
                pair(SET_SCANOUT, self.show_any),
                pair(RESOURCE_FLUSH, self.flush_any),
                pair(UPDATE_CURSOR, self.update_cursor_from_any),
            )
        )

    # --- Capability sets --------------------------------------------------------------------------------

    def capset_info(self, asked: GetCapsetInfo, chain: Chain) -> Answer:
        if asked.capset_index >= len(self._capsets):
            return self.get_capset_info(asked, chain)
        number = list(self._capsets)[asked.capset_index]
        version, content = self._capsets[number]
        return Response.OK_CAPSET_INFO, CAPSET_INFO.pack(number, version, len(content))

    def capset(self, asked: GetCapset, chain: Chain) -> Answer:
        version, content = self._capsets.get(asked.capset_id, (-1, b""))
        if asked.capset_version > version:
            return self.get_capset(asked, chain)
        return Response.OK_CAPSET, content

    # --- Contexts ---------------------------------------------------------------------------------------

    def create_context(self, new: CtxCreate, _chain: Chain) -> Pending:
        number = self._asked.ctx_id
        if not number or number in self._contexts:
            raise CommandError(Response.ERR_INVALID_CONTEXT_ID, f"{number} for a new context")
        if len(self._contexts) == MOST_CONTEXTS:
            raise CommandError(Response.ERR_OUT_OF_MEMORY, f"more than {MOST_CONTEXTS} contexts")
        flags = new.context_init & CAPSET_MASK if self._features >> GpuFeature.CONTEXT_INIT & 1 else 0
        if flags and flags not in self._capsets:
            raise CommandError(Response.ERR_INVALID_PARAMETER, f"there is no capability set {flags}")
        name = new.debug_name[: min(new.nlen, messages.NAME - 1)]
        self._contexts.add(number)
        what = messages.CreateContext(number, flags, name)
        pending = self._engine.ask(messages.CREATE_CONTEXT, what, fence=self._fence())
        pending.then(lambda answer: self._contexts.discard(number) if answer[0].is_error else None)
        return pending

    def destroy_context(self, _: Empty, _chain: Chain) -> Outcome:
        number = self._context()
        fence = self._fence()
        self._contexts.remove(number)
        return self._engine.ask(messages.DESTROY_CONTEXT, messages.Context(number), fence=fence)

    def attach_resource(self, named: CtxResource, _chain: Chain) -> Outcome:
        return self._tell_of_resource(messages.ATTACH_RESOURCE, named)

    def detach_resource(self, named: CtxResource, _chain: Chain) -> Outcome:
        return self._tell_of_resource(messages.DETACH_RESOURCE, named)

    def _tell_of_resource(self, row: Row[Any, Any], named: CtxResource) -> Outcome:
        """A driver names all its resources to its contexts. The renderer knows those that are its own."""
        context = self._context()
        if not isinstance(self.resources[named.resource_id], Texture):
            return DONE
        what = messages.ContextResource(context, named.resource_id)
        return self._engine.ask(row, what, fence=self._fence())

    def submit(self, wanted: Submit3d, chain: Chain) -> Pending:
        context = self._context()
        if wanted.size % WORD or wanted.size > MOST:
            raise CommandError(
                Response.ERR_INVALID_PARAMETER, f"{wanted.size} bytes of commands, of {MOST} at most"
            )
        self.work += wanted.size
        commands = chain.read(wanted.size)
        self.prepare(context, commands)
        return self._engine.submit(context, commands, self._fence())

    def prepare(self, context: int, commands: bytes) -> None:
        """Called before a context's commands are executed."""

    def _context(self) -> int:
        """The command's context, which must exist."""
        number: int = self._asked.ctx_id
        if number not in self._contexts:
            raise CommandError(Response.ERR_INVALID_CONTEXT_ID, f"there is no context {number}")
        return number

    def _fence(self) -> Fence:
        """When the command at hand is complete."""
        asked = self._asked
        if not asked.flags & Header.FENCE:
            return Fence()
        if not (asked.flags & Header.RING_IDX and self._features >> GpuFeature.CONTEXT_INIT & 1):
            return Fence(messages.Head.GLOBAL, asked.ctx_id)
        if asked.ring_idx >= RINGS:
            raise CommandError(Response.ERR_INVALID_PARAMETER, f"ring {asked.ring_idx} of {RINGS}")
        return Fence(messages.Head.RING, self._context(), asked.ring_idx)

    # --- Resources --------------------------------------------------------------------------------------

    def create_3d(self, new: ResourceCreate3d, _chain: Chain) -> Pending:
        sides = (new.height, new.depth, new.array_size)
        if not new.width or max(sides) > MOST_SIDE or new.nr_samples > MOST_SAMPLES:
            raise CommandError(Response.ERR_INVALID_PARAMETER, f"a resource of {new}")
        if new.last_level >= MOST_LEVELS:
            raise CommandError(Response.ERR_INVALID_PARAMETER, f"{new.last_level + 1} levels")
        fence = self._fence()
        texture = Texture(new)
        self.resources.reserve(texture.number, texture.cost)
        self.resources.add(texture)
        fields = (getattr(new, name) for name in messages.CreateResource.FIELDS)
        what = messages.CreateResource(*fields)
        pending = self._engine.ask(messages.CREATE_RESOURCE, what, fence=fence)
        pending.then(lambda answer: self._drop(texture) if answer[0].is_error else None)
        return pending

    def _drop(self, texture: Texture) -> None:
        """Forgets a texture that could not be made."""
        if texture in self.resources:
            self.unref(ResourceId(texture.number, 0))
            self._engine.free(texture, Fence())

    def unref_any(self, named: ResourceId, chain: Chain) -> Outcome:
        resource = self.resources[named.resource_id]
        fence = self._fence()
        self.unref(named, chain)
        return self._engine.free(resource, fence) if isinstance(resource, Texture) else None

    def attach_backing_to_any(self, named: AttachBacking, chain: Chain) -> Outcome:
        fence = self._fence()
        self.attach_backing(named, chain)
        resource = self.resources[named.resource_id]
        backing = resource.backing
        if not isinstance(resource, Texture) or backing is None:
            return None

        def failed() -> None:
            if resource.backing is backing:
                self.resources.detach(resource)

        return self._engine.attach_backing(resource, backing, failed, fence)

    def detach_backing_from_any(self, named: ResourceId, chain: Chain) -> Outcome:
        fence = self._fence()
        self.detach_backing(named, chain)
        resource = self.resources[named.resource_id]
        return self._engine.detach_backing(resource, fence) if isinstance(resource, Texture) else None

    def transfer_3d(self, part: TransferHost3d, chain: Chain, *, to_host: bool) -> Outcome:
        resource = self.resources[part.resource_id]
        if not isinstance(resource, Texture):
            self._transfer_2d(resource.number, part, chain, to_host=to_host)
            return None
        if part.level >= resource.levels:
            raise CommandError(Response.ERR_INVALID_PARAMETER, f"level {part.level} of {resource.levels}")
        if resource.backing is None:
            raise CommandError(Response.ERR_UNSPEC, f"resource {resource.number} has no backing")
        if self._asked.ctx_id:
            self._context()
        box = (part.x, part.y, part.z, part.width, part.height, part.depth)
        how = (part.level, part.stride, part.layer_stride, int(to_host))
        what = messages.Transfer(resource.number, self._asked.ctx_id, *how, *box, part.offset)
        return self._engine.ask(messages.TRANSFER, what, fence=self._fence())

    def _transfer_2d(self, number: int, part: TransferHost3d, chain: Chain, *, to_host: bool) -> None:
        """A transfer of a 2D resource, which this program has."""
        if not to_host or part.z or part.level:
            raise CommandError(Response.ERR_INVALID_PARAMETER, f"resource {number} is no texture")
        rect = (part.x, part.y, part.width, part.height)
        self.transfer_to_host_2d(TransferToHost2d(*rect, part.offset, number, 0), chain)

    def transfer_to_any_2d(self, part: TransferToHost2d, chain: Chain) -> Outcome:
        if not isinstance(self.resources[part.resource_id], Texture):
            self.transfer_to_host_2d(part, chain)
            return None
        box = (part.x, part.y, 0, part.width, part.height, 1)
        whole = TransferHost3d(*box, part.offset, part.resource_id, 0, 0, 0)
        return self.transfer_3d(whole, chain, to_host=True)

    # --- What is shown ----------------------------------------------------------------------------------

    def show_any(self, wanted: SetScanout, chain: Chain) -> Outcome:
        """SET_SCANOUT. A new size is painted when it is drawn, or its pixels have been read."""
        texture = self._displayable(wanted.resource_id) if wanted.resource_id else None
        self.set_scanout(wanted, chain)
        scanout = self.scanouts[wanted.scanout_id]
        if texture is None:
            return None
        self._share(texture)
        if not scanout.damage:
            return None
        scanout.take_damage()
        return self._show_later(texture, scanout.rect)

    def flush_any(self, part: ResourceFlush, chain: Chain) -> Outcome:
        resource = self.resources[part.resource_id]
        rect = Rect(part.x, part.y, part.width, part.height)
        if not isinstance(resource, Texture) or not rect.fits(resource.width, resource.height):
            self.flush(part, chain)
            return None
        visible = NOTHING
        for scanout in self._showing(resource):
            visible = visible.around(rect.common(scanout.rect))
        return self._show_later(resource, visible) if visible else None

    def _share(self, texture: Texture) -> None:
        """Asks for a dmabuf of a texture when it is shown for the first time, if there can be any."""
        if texture.is_asked or not self._engine.abilities.exports:
            return

        def take(it: Exported, fd: Fd) -> None:
            # The protocol cannot say where in the dmabuf a picture begins.
            if it.offset or it.fourcc > MOST_FOURCC or texture not in self.resources:
                fd.close()
                return
            size = (texture.width, texture.height)
            texture.take_dmabuf(Dmabuf(fd, *size, it.stride, it.fourcc, it.flags, it.modifier))

        sharing = self._engine.export(texture, take)
        texture.await_dmabuf(sharing, lambda rect: self._engine.read(texture, rect, lambda: None))

    def _show_later(self, texture: Texture, rect: Rect) -> Pending:
        """Shows a rectangle when it is drawn; where the front-end gets a copy, when that has been read."""

        def show() -> None:
            for scanout in self._showing(texture):
                scanout.flush(rect)
                self._changed(scanout)

        texture.unread = texture.unread.around(rect)
        if texture.is_asked and not any(scanout.is_copied for scanout in self._showing(texture)):
            return self._engine.finish(show, self._fence())
        unread, texture.unread = texture.unread, NOTHING
        return self._engine.read(texture, unread, show, self._fence())

    def update_cursor_from_any(self, wanted: UpdateCursor, chain: Chain) -> Outcome:
        """UPDATE_CURSOR. The cursor moves at once, and gets its shape when that has been read."""
        scanout = self._scanout(wanted.scanout_id)
        self._shapes[scanout.number] = wanted
        resource = self.resources[wanted.resource_id] if wanted.resource_id else None
        if not isinstance(resource, Texture):
            self.update_cursor(wanted, chain)
            return None
        texture = self._displayable(wanted.resource_id)
        if texture is None or not texture.width == texture.height == CURSOR_SIDE:
            raise CommandError(
                Response.ERR_INVALID_PARAMETER, f"resource {wanted.resource_id} is no shape of cursors"
            )
        scanout.cursor.move(wanted.x, wanted.y)
        self._changed(scanout)

        def reshape() -> None:
            shape = cursor_shape(texture)
            if self._shapes.get(scanout.number) is wanted and shape is not None:
                scanout.cursor.reshape(shape, wanted.hot_x, wanted.hot_y)
                self._changed(scanout)

        return self._engine.read(texture, Rect(0, 0, CURSOR_SIDE, CURSOR_SIDE), reshape, self._fence())

    def _displayable(self, number: int) -> Texture | None:
        """A resource that is shown, with room for its pixels, if it is a texture."""
        texture = self.resources[number]
        if not isinstance(texture, Texture):
            return None
        if not texture.is_displayable:
            raise CommandError(Response.ERR_INVALID_PARAMETER, f"resource {number} is no plain picture")
        if not texture.has_pixels:
            if sum(isinstance(each, Texture) and each.has_pixels for each in self.resources) >= MOST_SHOWN:
                raise CommandError(Response.ERR_OUT_OF_MEMORY, f"more than {MOST_SHOWN} textures to show")
            self.resources.enlarge(texture, texture.picture_size)
            try:
                texture.make_pixels()
                self._engine.share_pixels(texture)
            except OSError as error:
                raise CommandError(Response.ERR_OUT_OF_MEMORY, f"the host has none: {error}") from None
        return texture
