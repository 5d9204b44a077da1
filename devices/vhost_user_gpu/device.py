"""Gpu: the display as a device."""

import argparse
import asyncio
import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from functools import partial
from typing import Self

from vhost_user_gpu import MANIFEST, saved_card
from vhost_user_gpu.accelerator import Accelerator
from vhost_user_gpu.answer import Answer
from vhost_user_gpu.card import Card, Request
from vhost_user_gpu.commands import MAX_SCANOUTS, MOVE_CURSOR, GpuFeature
from vhost_user_gpu.config import EVENT_DISPLAY, Config
from vhost_user_gpu.display import Display
from vhost_user_gpu.edid import MAX_SIDE
from vhost_user_gpu.exporter import Exporter
from vhost_user_gpu.outputs import Outputs
from vhost_user_gpu.pixels import PIXEL
from vhost_user_gpu.scanout import Scanout
from vhost_user_gpu.screenshot import Screenshots, Target
from vhostd import (
    Call,
    Chain,
    Device,
    DeviceType,
    Empty,
    Fds,
    Grants,
    GuestError,
    Handler,
    RefusedRequest,
    SetupError,
    Signals,
    UsageError,
    Virtqueue,
    answer_with_fds,
    connected_stream,
    size,
)
from vhostd.vhost_user.messages import GPU_SET_SOCKET

MEMORY, MEMORY_3D = 256 << 20, 1 << 30  # bytes that a guest has for its pictures, and for its textures too
TURN = 16 << 20  # a guest's work, in bytes copied, before signals, messages and pictures have a turn
# Seconds that a guest waits until the front-end has said what monitors there are. Windows' driver gives up
# after 1 second, and must not be answered after that.
ANSWER_PATIENCE = 0.5
NEWS_PATIENCE = 0.5  # seconds that a front-end has to tell the guest of other monitors itself, as QEMU does


class Gpu(Device):
    """a display for the guest (virtio-gpu): 2D without GL, and 3D where that is asked for"""

    kind = DeviceType.of(MANIFEST.type)
    features = 1 << GpuFeature.EDID | 1 << GpuFeature.RESOURCE_UUID | 1 << GpuFeature.RESOURCE_BLOB
    keeps_memory = True  # a resource's pages: what is shown, and what is shared as a dmabuf

    def __init__(
        self,
        scanouts: int,
        resolution: tuple[int, int],
        memory: int,
        screenshot: Target | None = None,
        exporter: Exporter | None = None,
        accelerator: Accelerator | None = None,
    ) -> None:
        """Has so many scan-outs of this resolution until a front-end says more, and `memory` bytes.

        With an `exporter` it shows dmabufs where it can, with an `accelerator` it has 3D; it owns both, and
        where screenshots go.
        """
        self.state_limit = memory + saved_card.BESIDE_MEMORY
        self._scanouts = scanouts
        self._exporter = exporter
        self._accelerator = accelerator
        self._outputs = Outputs(scanouts, *resolution)
        if accelerator is None:
            self._config = Config(scanouts)
            self._card = Card(self._outputs, memory, self._show_news)
        else:
            self._config = Config(scanouts, accelerator.capsets)
            self._card = accelerator.card(self._outputs, memory, self._show_news)
            self.features = self.features | accelerator.features
        self._screenshots = None if screenshot is None else Screenshots(screenshot, self._card.scanouts)
        self._display: Display | None = None
        self._announcement: asyncio.TimerHandle | None = None
        self._control: tuple[Virtqueue, asyncio.TaskGroup] | None = None  # while the controlq runs
        self._turn = asyncio.Lock()  # of the controlq's commands, which may wait for the renderer
        self._use_scanouts()

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        """Adds what can be chosen; the rest is the front-end's to say."""
        add = parser.add_argument_group("display").add_argument
        add("--scanouts", metavar="N", type=_scanouts, default=1, help="monitors, 1 to 16; default: 1")
        add("--resolution", metavar="WxH", type=_resolution, default=(1280, 800), help="default: 1280x800")
        add("--max-memory", metavar="SIZE", type=size, help="the guest's; default: 256M, with --virgl 1G")
        add(
            "--screenshot",
            metavar="PATH",
            type=_file,
            help="on SIGUSR1, write there what the guest shows, as PNG",
        )
        add(
            "--dmabuf", action="store_true", help="share pictures with a front-end that shows by GL, uncopied"
        )
        add("-v", "--virgl", action="store_true", help="3D, by libvirglrenderer on the host's OpenGL")
        add(
            "-r",
            "--render-node",
            metavar="PATH",
            help="with --virgl: 3D on this GPU, such as /dev/dri/renderD128",
        )

    @classmethod
    def from_options(cls, options: argparse.Namespace) -> Self:
        """Makes the device; raises SetupError if the host has no dmabufs, no folder, or no GL for it."""
        node = options.render_node  # libvirt names one even where it wants no 3D
        if node is not None and not os.path.exists(node):
            raise SetupError(f"--render-node={node}: there is no such device")
        memory = options.max_memory or (MEMORY_3D if options.virgl else MEMORY)
        width, height = options.resolution
        if memory < (least := width * height * PIXEL):
            raise UsageError(f"--max-memory={memory}: one picture of {width}x{height} takes {least} bytes")
        with ExitStack() as on_failure:
            exporter = target = accelerator = None
            if options.screenshot is not None:
                target = on_failure.enter_context(closing(Target(options.screenshot)))
            if options.virgl:
                accelerator = on_failure.enter_context(closing(_accelerate(node, memory, options)))
            if options.dmabuf:
                needs_blobs = accelerator is None or not accelerator.exports
                exporter = on_failure.enter_context(closing(Exporter(blobs=needs_blobs)))
            on_failure.pop_all()
        return cls(options.scanouts, options.resolution, memory, target, exporter, accelerator)

    def grants(self) -> Grants:
        """The folder of the screenshots, what makes dmabufs, and what starts renderers."""
        parts = (self._screenshots, self._exporter, self._accelerator)
        return Grants.together(part.grants() for part in parts if part is not None)

    @property
    def queues(self) -> Sequence[Handler]:
        """The controlq and the cursorq (5.7.2)."""
        return [self.controlq, self.cursorq]

    async def controlq(self, queue: Virtqueue) -> None:
        """Executes commands; those that only the front-end can answer wait for it, the others do not."""
        self._card.look_up(queue.gather)
        try:
            async with asyncio.TaskGroup() as later:
                self._control = (queue, later)
                async for chain in queue:
                    await self._take(chain, queue, later)
                if self._display is not None:
                    self._display.give_up()
                await self._settle()
        except ExceptionGroup as failed:  # the group is our own affair
            raise failed.exceptions[0] from None
        finally:
            self._control = None

    async def cursorq(self, queue: Virtqueue) -> None:
        """Executes commands that give the cursor its shape and its place."""
        self._card.look_up(queue.gather)
        async for chain in queue:
            request = Request(chain)
            if request.command is not MOVE_CURSOR:  # a pointer moves whatever the controlq waits for
                await self._catch_up()
            self._execute(queue, request)
        await self._settle()

    async def _settle(self) -> None:
        """A ring stops: no renderer keeps its chains for long."""
        if self._accelerator is not None:
            await self._accelerator.settle()

    async def _catch_up(self) -> None:
        """Executes what the controlq has: a driver that waits for no fence counts on that order."""
        left = 0 if self._control is None else self._control[0].size
        while left and self._control is not None and (chain := _pop(self._control[0])) is not None:
            await self._take(chain, *self._control)
            left -= 1

    async def _take(self, chain: Chain, queue: Virtqueue, later: asyncio.TaskGroup) -> None:
        """Executes a command of the controlq, now or later."""
        if self._accelerator is not None:
            async with self._turn:  # so that none overtakes another
                await self._accelerator.eased()
        request = Request(chain)
        if request.is_about_monitors and self._display is not None:
            later.create_task(self._execute_after(self._display.refresh(), queue, request))
        else:
            self._execute(queue, request)
        if self._card.work > TURN:
            self._card.work = 0
            await asyncio.sleep(0)

    def read_config(self) -> bytes:
        """Events and the number of scan-outs."""
        return self._config.read()

    def write_config(self, offset: int, data: bytes) -> None:
        """Clears events; raises RefusedRequest for anything else."""
        self._config.write(offset, data)

    @property
    def calls(self) -> Sequence[Call]:
        """GPU_SET_SOCKET."""
        return [answer_with_fds(GPU_SET_SOCKET, self._set_socket)]

    def show_on(self, sock: socket.socket) -> None:
        """Takes a connected socket, and shows everything there from now on, instead of on the one before."""
        if self._display is not None:
            self._display.close()
        self._display = Display(
            sock, self._card.scanouts, self._outputs, self._announce_later, self._exporter
        )
        self._use_scanouts()

    def save(self) -> bytes:
        """All that the guest has made, with its pixels, and what it knows of the monitors.

        Raises RefusedRequest if some of it is 3D: nobody can save what a GL driver has.
        """
        if self._card.has_3d:
            raise RefusedRequest("the guest has 3D contexts or resources, which cannot go elsewhere")
        return saved_card.save(self._card, self._config)

    def load(self, state: bytes, version: int) -> None:
        """Shows what the guest has made in another program. The driver will hear of other monitors."""
        saved_card.load(state, self._card, self._config)
        self._announce_later()

    def counts(self) -> Mapping[str, int]:
        """What is done in 3D, if there is any."""
        return {} if self._accelerator is None else self._accelerator.counts()

    async def run(self) -> None:
        """Takes screenshots, if they are wanted."""
        if self._accelerator is not None:
            self._accelerator.listen()
        if self._screenshots is not None:
            await self._screenshots.run()

    def signals(self) -> Signals:
        """SIGUSR1 asks for a screenshot, if there can be any."""
        return {} if self._screenshots is None else {"SIGUSR1": self._screenshots.take}

    def reset(self) -> None:
        """Forgets what the guest has made, and shows nothing any more."""
        self._card.reset()
        self._config.events = 0

    def detach(self) -> None:
        """Closes the front-end's socket as well."""
        super().detach()
        if self._announcement is not None:
            self._announcement.cancel()
        if self._display is not None:
            self._display.close()
            self._display = None
        self._outputs.forget_front_end()
        self._use_scanouts()

    def close(self) -> None:
        """Gives the guest's pictures up."""
        self._card.reset()
        if self._accelerator is not None:
            self._accelerator.close()
        if self._exporter is not None:
            self._exporter.close()
        if self._screenshots is not None:
            self._screenshots.close()

    def _set_socket(self, _: Empty, fds: Fds) -> None:
        self.show_on(connected_stream(fds[0], GPU_SET_SOCKET))

    def _execute(self, queue: Virtqueue, request: Request) -> None:
        answer = self._card.execute(request, self.negotiated)
        if isinstance(answer, tuple):
            _respond(queue, request, answer)
        else:
            answer.then(partial(_respond, queue, request))

    async def _execute_after(self, answer: asyncio.Future[None], queue: Virtqueue, request: Request) -> None:
        await asyncio.wait([answer], timeout=ANSWER_PATIENCE)
        answer.cancel()
        self._execute(queue, request)

    def _show_news(self, scanout: Scanout) -> None:
        if self._display is not None:
            self._display.update(scanout)

    def _announce_later(self) -> None:
        """The front-end has said what monitors there are; tells the driver soon, unless it asks before."""
        if self._announcement is not None:
            self._announcement.cancel()
        self._announcement = asyncio.get_running_loop().call_later(NEWS_PATIENCE, self._announce)

    def _announce(self) -> None:
        if self._outputs.news:
            self._config.events |= EVENT_DISPLAY
            self.config_changed()

    def _use_scanouts(self) -> None:
        # A front-end that shows scan-outs tells the guest itself how many there are, and us it does not.
        self._card.usable = self._scanouts if self._display is None else MAX_SCANOUTS


def _respond(queue: Virtqueue, request: Request, answer: Answer) -> None:
    if answer[0].is_error:
        queue.count_error()
    request.respond(answer)
    queue.push(request.chain)


def _accelerate(node: str | None, memory: int, options: argparse.Namespace) -> Accelerator:
    # Here, since few want 3D, and all others start faster without it.
    from vhost_user_gpu.virgl.acceleration import Acceleration

    return Acceleration(node, memory, sandbox=options.sandbox != "none", dmabuf=options.dmabuf)


def _pop(queue: Virtqueue) -> Chain | None:
    """The next chain of another handler's queue, if there is one that is whole."""
    try:
        return queue.pop()
    except GuestError:  # the ring stays as it was, and its own handler will see that
        return None


def _scanouts(text: str) -> int:
    if not text.isdecimal() or len(text) > 2 or not 1 <= int(text) <= MAX_SCANOUTS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {MAX_SCANOUTS}")
    return int(text)


def _file(text: str) -> str:
    if os.path.basename(text) in ("", os.curdir, os.pardir):
        raise argparse.ArgumentTypeError(f"{text!r} is not a file's name")
    return text


def _resolution(text: str) -> tuple[int, int]:
    sides = text.split("x")
    if len(sides) == 2 and all(side.isdecimal() and len(side) <= 5 for side in sides):
        width, height = map(int, sides)
        if 1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE:
            return width, height
    raise argparse.ArgumentTypeError(f"{text!r} is not a resolution such as 1280x800")
