"""AdoptingCard: a card whose contexts may use 2D pictures.

A driver names its 2D pictures to its contexts as it does textures. Most are never used there. They stay in
this program, where they outlive a renderer. A picture that a context's commands name becomes a texture, which
the renderer has from then on.
"""

from array import array
from collections.abc import Callable

from vhost_user_gpu.answer import DONE
from vhost_user_gpu.card import Outcome
from vhost_user_gpu.commands import (
    CommandError,
    CtxResource,
    ResourceCreate3d,
    ResourceId,
    Response,
    TransferHost3d,
)
from vhost_user_gpu.outputs import Outputs
from vhost_user_gpu.pixels import Format
from vhost_user_gpu.resource import Picture
from vhost_user_gpu.scanout import Framebuffer, Scanout
from vhost_user_gpu.virgl import messages
from vhost_user_gpu.virgl.arena import MOST
from vhost_user_gpu.virgl.card import VirglCard
from vhost_user_gpu.virgl.engine import Engine
from vhost_user_gpu.virgl.remote import Fence
from vhost_user_gpu.virgl.texture import Texture
from vhostd import Chain, Empty

# What every renderer has, and what Linux' driver makes pictures of.
FORMATS = (Format.B8G8R8A8, Format.B8G8R8X8, Format.R8G8B8A8)
MOST_NAMED = 4096  # pictures, each counted once for each of its contexts; any more are adopted at once
# virglrenderer's virgl_hw.h. No flags: by Y_0_TOP a context would find the last row first.
TEXTURE_2D, BIND = 2, 1 << 1 | 1 << 3  # to draw there, and to look up


class AdoptingCard(VirglCard):
    """A card that makes a texture of a picture when a context uses it."""

    def __init__(
        self, outputs: Outputs, memory: int, changed: Callable[[Scanout], None], engine: Engine
    ) -> None:
        super().__init__(outputs, memory, changed, engine)
        self._named: dict[int, set[int]] = {}  # the pictures that each context has been told of

    def reset(self) -> None:
        super().reset()
        self._named = {}

    def attach_resource(self, named: CtxResource, chain: Chain) -> Outcome:
        picture = self._adoptable(named.resource_id)
        if picture is None:
            return super().attach_resource(named, chain)
        self._named.setdefault(self._context(), set()).add(picture.number)
        if sum(map(len, self._named.values())) > MOST_NAMED:
            self._adopt(picture)
        return DONE

    def detach_resource(self, named: CtxResource, chain: Chain) -> Outcome:
        self._named.get(self._context(), set()).discard(named.resource_id)
        return super().detach_resource(named, chain)

    def destroy_context(self, nothing: Empty, chain: Chain) -> Outcome:
        self._named.pop(self._asked.ctx_id, None)
        return super().destroy_context(nothing, chain)

    def unref_any(self, named: ResourceId, chain: Chain) -> Outcome:
        outcome = super().unref_any(named, chain)
        self._forget(named.resource_id)
        return outcome

    def transfer_3d(self, part: TransferHost3d, chain: Chain, *, to_host: bool) -> Outcome:
        if not to_host and (picture := self._adoptable(part.resource_id)) is not None:
            self._adopt(picture)
        return super().transfer_3d(part, chain, to_host=to_host)

    def prepare(self, context: int, commands: bytes) -> None:
        used = self._named.get(context, set()).intersection(array("I", commands))
        pictures = [picture for number in used if (picture := self._adoptable(number)) is not None]
        size = len(commands) + sum(map(_size_of_entries, pictures))
        if used and size > MOST:
            raise CommandError(Response.ERR_OUT_OF_MEMORY, f"{len(used)} pictures at once")
        for picture in pictures:
            self._adopt(picture)

    def _adoptable(self, number: int) -> Picture | None:
        """A resource that is a picture, and can be a texture; raises CommandError if there is none."""
        resource = self.resources[number]
        if not isinstance(resource, Picture) or isinstance(resource, Texture) or self._engine.is_lost:
            return None
        return resource if resource.format in FORMATS else None

    def _adopt(self, picture: Picture) -> None:
        """Puts a texture with the same number, backing and pixels in a picture's place."""
        new, backing = _like(picture), picture.backing
        texture = Texture(new)
        texture.given_uuid = picture.given_uuid
        shown, pixels = self._showing(picture), b""
        if shown:
            self.resources.enlarge(picture, texture.picture_size)  # or there is no room
            pixels = picture.pixels[:]
        self.resources.remove(picture)
        self.resources.add(texture, backing)
        self._create(texture, new)
        self._show_instead(shown, texture, pixels)

    def _create(self, texture: Texture, new: ResourceCreate3d) -> None:
        """Has the renderer make a texture, which has what is in its backing."""
        engine, number, backing = self._engine, texture.number, texture.backing
        fields = (getattr(new, name) for name in messages.CreateResource.FIELDS)
        engine.ask(messages.CREATE_RESOURCE, messages.CreateResource(*fields))
        if backing is not None:
            engine.attach_backing(texture, backing, lambda: None, Fence())
            box = (0, 0, 0, texture.width, texture.height, 1)
            engine.ask(messages.TRANSFER, messages.Transfer(number, 0, 0, 0, 0, 1, *box, 0))
        for context in self._forget(number):
            engine.ask(messages.ATTACH_RESOURCE, messages.ContextResource(context, number))

    def _show_instead(self, scanouts: list[Scanout], texture: Texture, pixels: bytes) -> None:
        """Shows a texture that has these pixels in its picture's place."""
        if scanouts and self._displayable(texture.number) is not None:
            texture.pixels[: len(pixels)] = pixels
            for scanout in scanouts:
                self._show(scanout, Framebuffer.of(texture), scanout.rect)

    def _forget(self, number: int) -> list[int]:
        """A picture is none any more; returns the contexts that have been told of it."""
        contexts = [context for context, named in self._named.items() if number in named]
        for context in contexts:
            self._named[context].discard(number)
        return contexts


def _like(picture: Picture) -> ResourceCreate3d:
    """A flat texture of a picture's size."""
    size = (picture.width, picture.height, 1, 1)
    return ResourceCreate3d(picture.number, TEXTURE_2D, picture.format, BIND, *size, 0, 0, 0, 0)


def _size_of_entries(picture: Picture) -> int:
    """The bytes that a picture's backing takes in the arena."""
    return 0 if picture.backing is None else messages.Entry.SIZE * picture.backing.ranges
