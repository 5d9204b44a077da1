"""Engine: a renderer whenever a guest needs one, and what it knows of that guest."""

import errno
import logging
import os
from collections.abc import Callable
from typing import Any

from vhost_user_gpu.answer import DONE, Answer, Pending
from vhost_user_gpu.commands import CommandError, Response
from vhost_user_gpu.rect import Rect
from vhost_user_gpu.virgl import messages
from vhost_user_gpu.virgl.launcher import Launcher
from vhost_user_gpu.virgl.regions import Regions
from vhost_user_gpu.virgl.remote import Fence, Remote, Take
from vhost_user_gpu.virgl.texture import Texture
from vhostd import Empty, Gather, Layout, Row

log = logging.getLogger(__name__)

UNFENCED = Fence()


class Engine:
    """Starts a renderer for the first request, and another one for the first request after a reset."""

    def __init__(self, launcher: Launcher) -> None:
        """Owns the launcher."""
        self._launcher = launcher
        self.abilities = launcher.abilities
        self._remote: Remote | None = None
        self._regions: Regions | None = None
        self._has_failed_to_export = False
        self.requests = 0
        self.started = self.lost = 0  # renderers that were in use, and that ended so

    def ask(
        self,
        row: Row[Any, Any],
        payload: Layout,
        then: Callable[[], object] | None = None,
        *,
        fence: Fence = UNFENCED,
    ) -> Pending:
        """Sends a request. When it has been executed, `then` is called, which may raise CommandError."""

        def answer(error: int) -> Answer:
            try:
                _check(row, error)
                if then is not None:
                    then()
            except CommandError as failed:
                log.warning("%s: %s", row, failed)
                return failed.response, b""
            return DONE

        self.requests += 1
        return self._renderer().ask(row, payload, answer, fence=fence)

    def after_fences(self, answer: Answer) -> Answer | Pending:
        """The answer, once all fences have signalled that are in the order of all."""
        return answer if self._remote is None else self._remote.after_fences(answer)

    async def eased(self) -> None:
        """Waits until a request of any size can be sent."""
        if self._remote is not None:
            await self._remote.eased()

    async def settle(self) -> None:
        """Waits until nothing is under way."""
        if self._remote is not None:
            await self._remote.settle()

    @property
    def is_lost(self) -> bool:
        """Whether the renderer is lost, until a reset."""
        return self._remote is not None and self._remote.is_lost

    @property
    def is_congested(self) -> bool:
        """Whether the next command should wait until the renderer has `eased`."""
        return self._remote is not None and self._remote.is_congested

    def listen(self) -> None:
        """Logs what renderers say from now on; the event loop runs."""
        self._launcher.listen()

    def reset(self) -> None:
        """Forgets the renderer, and whatever the guest has in it."""
        if self._remote is not None:
            self._remote.close()
            self._launcher.end()
            self._remote = self._regions = None

    def close(self) -> None:
        """Ends the renderer, and starts none any more."""
        self.reset()
        self._launcher.close()

    # --- What takes more than a packet ------------------------------------------------------------------

    def submit(self, ctx_id: int, commands: bytes, fence: Fence) -> Pending:
        """Has a context's commands executed."""
        remote = self._renderer()
        offset = 0 if remote.is_lost else remote.arena.put(remote.next_serial, commands)
        return self.ask(messages.SUBMIT, messages.Submit(ctx_id, len(commands), offset), fence=fence)

    def attach_backing(
        self, texture: Texture, backing: Gather, failed: Callable[[], None], fence: Fence
    ) -> Pending:
        """Gives a texture its backing in the renderer; without one there, `failed` is called."""
        remote = self._renderer()
        if remote.is_lost or self._regions is None:
            failed()
            raise CommandError(Response.ERR_UNSPEC, "there is no renderer")
        entries, texture.files = self._regions.share(backing)
        offset = remote.arena.put(remote.next_serial, entries)
        place = messages.Attach(texture.number, len(entries) // messages.Entry.SIZE, offset)
        pending = self.ask(messages.ATTACH_BACKING, place, fence=fence)
        pending.then(lambda answer: failed() if answer[0].is_error else None)
        return pending

    def detach_backing(self, texture: Texture, fence: Fence) -> Pending:
        """Takes a texture's backing away."""
        pending = self._clean_up(messages.DETACH_BACKING, texture, fence)
        self._release(texture)
        return pending

    def free(self, texture: Texture, fence: Fence) -> Pending:
        """Frees a texture, its backing and its pixels."""
        pending = self._clean_up(messages.FREE_RESOURCE, texture, fence)
        self._release(texture)
        if texture.region and self._regions is not None:
            self._regions.forget(texture.region)
        return pending

    def read(
        self, texture: Texture, rect: Rect, then: Callable[[], object], fence: Fence = UNFENCED
    ) -> Pending:
        """Copies a rectangle of a texture to its pixels here, for which there is room; then calls `then`."""
        place = messages.Read(texture.number, texture.region, texture.stride, *rect)
        return self.ask(messages.READ, place, then, fence=fence)

    def finish(self, then: Callable[[], object], fence: Fence = UNFENCED) -> Pending:
        """Calls `then` when all that was asked for before is drawn."""
        last = fence if fence.order == messages.Head.GLOBAL else Fence(messages.Head.GLOBAL)
        return self.ask(messages.FINISH, Empty(), then, fence=last)

    def export(self, texture: Texture, take: Take) -> Pending:
        """Has `take` given a dmabuf of a texture. There may be none: that is no error."""
        self.requests += 1
        what = messages.Resource(texture.number)
        return self._renderer().ask(messages.EXPORT, what, self._say_copied, take=take)

    def share_pixels(self, texture: Texture) -> None:
        """Lets the renderer have a texture's pixels."""
        self._renderer()
        if self._regions is not None:
            texture.region = self._regions.share_picture(texture.fileno())
        texture.close_fd()

    def _clean_up(self, row: Row[Any, Any], texture: Texture, fence: Fence) -> Pending:
        """A request that succeeds in any case: a lost renderer has nothing any more."""
        return self._renderer().ask(row, messages.Resource(texture.number), lambda _: DONE, fence=fence)

    def _say_copied(self, error: int) -> Answer:
        if error and not self._has_failed_to_export:
            self._has_failed_to_export = True
            log.info("3D is copied to the front-end: there is no dmabuf of a texture: %s", os.strerror(error))
        return DONE

    def _release(self, texture: Texture) -> None:
        if self._regions is not None:
            self._regions.release(texture.files)
        texture.files = set()

    def _renderer(self) -> Remote:
        if self._remote is None:
            self.started += 1
            self._remote = self._launcher.start(self._say_lost)
            self._regions = Regions(self._remote)
            self._remote.start()
        return self._remote

    def _say_lost(self, why: str) -> None:
        self.lost += 1
        self._launcher.end()
        log.error("the renderer is lost: %s; the guest has no 3D until its driver is reset", why)


def _check(row: Row[Any, Any], error: int) -> None:
    """Raises CommandError for an errno."""
    if error == errno.ENOMEM:
        raise CommandError(Response.ERR_OUT_OF_MEMORY, "the renderer has no memory")
    if error == errno.EIO:
        raise CommandError(Response.ERR_UNSPEC, "there is no renderer")
    if error:
        raise CommandError(Response.ERR_UNSPEC, f"the renderer says {errno.errorcode.get(error, error)}")
