"""The renderer: a process that executes what one guest asks of GL, and knows nothing else.

    python -m vhost_user_gpu.virgl.renderer SOCKET [--node=PATH] [--memory=BYTES] [--sandbox=none]

SOCKET is the number of a connected socket's fd. The process ends when the other end is closed. A command of
the guest that crashes the GL driver ends only this process.
"""

import argparse
import errno
import os
import resource
import select
import socket
import stat
from collections import deque
from collections.abc import Callable
from typing import Any

from vhost_user_gpu.virgl import messages
from vhost_user_gpu.virgl.confinement import confine_renderer
from vhost_user_gpu.virgl.egl import Egl
from vhost_user_gpu.virgl.library import GL_RENDERER, GL_VERSION, Memory, Virgl
from vhost_user_gpu.virgl.messages import (
    ARENA,
    GL_NAME,
    MOST_PACKET,
    REQUESTS,
    Capset,
    Entry,
    Exported,
    Head,
    Hello,
    Replies,
    Result,
)
from vhostd import Fd, Layout
from vhostd.wire.packets import receive_packet, send_packet

CAPSETS = (1, 2)  # VIRGL and VIRGL2
DRM_MAJOR = 226  # Linux, include/uapi/drm/drm.h
BATCH = 32  # requests that are executed before fences and replies have a turn
POLL = 0.004  # seconds between two looks at fences, with a library that has no fd for them
SOFTWARE = ("llvmpipe", "softpipe")  # of GL's name for a rasteriser whose dmabufs have no fences
BESIDE_RESOURCES = 2 << 30  # bytes that a GL driver, its compiler and contexts may take beside resources
# A request whose fence cannot be made is complete at once.
Execute = Callable[[Any], int | None]


class Renderer:
    """Executes requests from a socket, which it owns, by the library. With an `egl` it exports textures."""

    def __init__(self, sock: socket.socket, virgl: Virgl, egl: Egl | None = None) -> None:
        self._socket = sock
        self._virgl = virgl
        self._egl = egl
        self._finishes = False  # whether whoever has a dmabuf cannot wait for drawing by itself
        self._regions: dict[int, Memory] = {}
        self._fds: list[Fd] = []  # that came with the request at hand
        self._methods = self._table_of_methods()
        self._results: list[tuple[int, int]] = []  # serials and errors that nobody has been told of
        self._serial = self._executed = 0  # of the request at hand; up to which all are executed
        self._fenced: deque[tuple[int, int]] = deque()  # the same, of those that wait for a global fence
        # By serials: contexts and errors of those that wait for a ring's fence.
        self._ringed: dict[int, tuple[int, int]] = {}

    def greet(self) -> None:
        """Says what there is."""
        virgl = self._virgl
        sets = [(number, *virgl.capset(number)) for number in CAPSETS]
        sets = [each for each in sets if each[2]]
        names = [virgl.gl_string(name).encode()[:GL_NAME] for name in (GL_RENDERER, GL_VERSION)]
        features = Hello.CONTEXT_INIT if virgl.has_context_init else 0
        features |= Hello.EXPORTS if self._egl is not None else 0
        hello = Hello(1, len(sets), features, *names).pack()
        for number, version, content in sets:
            hello += Capset(number, version, len(content)).pack() + content
        self._socket.send(hello)

    def run(self) -> None:
        """Serves until the other side closes the socket."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        if self._virgl.poll_fd >= 0:
            poll.register(self._virgl.poll_fd, select.POLLIN)
        while True:
            waits = bool(self._fenced or self._ringed)
            poll.poll(POLL * 1000 if waits and self._virgl.poll_fd < 0 else None)
            if not self._execute_some():
                return
            self._retire(self._virgl.poll())
            self._reply()

    def _execute_some(self) -> bool:
        """Executes what has come, up to a batch of it; False if nothing more will come."""
        for _ in range(BATCH):
            try:
                data, fds = receive_packet(self._socket, MOST_PACKET, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return True
            self._fds = [Fd(fd) for fd in fds]
            try:
                if not data:
                    return False
                self._take(data)
            finally:
                for fd in self._fds:
                    fd.close()
        return True

    def _take(self, data: bytes) -> None:
        head = Head.unpack(data[: Head.SIZE])
        self._serial = head.serial
        row = REQUESTS[head.request]
        layout: type[Layout] = row.payload
        try:
            error = abs(self._methods[head.request](layout.unpack(data[Head.SIZE :])) or 0)
        except (MemoryError, OSError) as failed:
            error = getattr(failed, "errno", None) or errno.ENOMEM
        self._executed = head.serial
        self._complete(head, error)

    def _complete(self, head: Head, error: int) -> None:
        """Notes the result of a request, for when its fence has signalled."""
        done = (head.serial, error)
        if head.fence == Head.GLOBAL and not self._virgl.create_fence(head.serial, head.ctx_id):
            self._fenced.append(done)
        elif head.fence == Head.RING and not self._virgl.create_context_fence(
            head.ctx_id, head.ring_idx, head.serial
        ):
            self._ringed[head.serial] = (head.ctx_id, error)
        else:
            self._results.append(done)

    def _retire(self, signalled: list[tuple[bool, int]]) -> None:
        for is_global, serial in signalled:
            if not is_global:
                self._signal(serial)
                continue
            while self._fenced:
                done = self._fenced.popleft()
                self._results.append(done)
                if done[0] == serial:
                    break

    def _signal(self, serial: int) -> None:
        """A fence of a context's ring has signalled."""
        if serial in self._ringed:
            _, error = self._ringed.pop(serial)
            self._results.append((serial, error))

    def _reply(self) -> None:
        results = b"".join(Result(*each).pack() for each in self._results)
        self._results.clear()
        self._socket.send(Replies(self._executed).pack() + results)

    # --- Requests ---------------------------------------------------------------------------------------

    def _table_of_methods(self) -> dict[int, Execute]:
        return {
            messages.ADD_REGION.request: self._add_region,
            messages.DROP_REGION.request: self._drop_region,
            messages.CREATE_CONTEXT.request: self._create_context,
            messages.DESTROY_CONTEXT.request: self._destroy_context,
            messages.ATTACH_RESOURCE.request: lambda it: self._virgl.attach_resource(
                it.ctx_id, it.resource_id
            ),
            messages.DETACH_RESOURCE.request: lambda it: self._virgl.detach_resource(
                it.ctx_id, it.resource_id
            ),
            messages.CREATE_RESOURCE.request: self._create_resource,
            messages.FREE_RESOURCE.request: lambda it: self._virgl.free_resource(it.resource_id),
            messages.ATTACH_BACKING.request: self._attach_backing,
            messages.DETACH_BACKING.request: lambda it: self._virgl.detach_backing(it.resource_id),
            messages.SUBMIT.request: self._submit,
            messages.TRANSFER.request: self._transfer,
            messages.READ.request: self._read,
            messages.EXPORT.request: self._export,
            messages.FINISH.request: lambda _: 0,
        }

    def _add_region(self, new: messages.AddRegion) -> None:
        self._regions[new.region] = Memory(self._fds[0].fileno(), new.size)

    def _drop_region(self, it: messages.Region) -> None:
        del self._regions[it.region]

    def _create_context(self, new: messages.CreateContext) -> int:
        return self._virgl.create_context(new.ctx_id, new.flags, new.name.rstrip(b"\0"))

    def _destroy_context(self, it: messages.Context) -> None:
        """The library forgets the fences of its rings, for which the guest waits."""
        self._virgl.destroy_context(it.ctx_id)
        for serial in [serial for serial, (ctx_id, _) in self._ringed.items() if ctx_id == it.ctx_id]:
            self._signal(serial)

    def _create_resource(self, new: messages.CreateResource) -> int:
        return self._virgl.create_resource(*(getattr(new, name) for name in new.FIELDS))

    def _attach_backing(self, it: messages.Attach) -> int:
        packed = self._regions[ARENA].bytes(it.offset, it.entries * Entry.SIZE)
        entries = (Entry.unpack(packed[at : at + Entry.SIZE]) for at in range(0, len(packed), Entry.SIZE))
        ranges = [(self._regions[each.region], each.offset, each.length) for each in entries]
        return self._virgl.attach_backing(it.resource_id, ranges)

    def _submit(self, it: messages.Submit) -> int:
        result = self._virgl.submit(it.ctx_id, self._regions[ARENA], it.offset, it.size)
        self._finish()
        return result

    def _transfer(self, it: messages.Transfer) -> int:
        box = (it.x, it.y, it.z, it.width, it.height, it.depth)
        how = (it.level, it.stride, it.layer_stride, bool(it.to_host))
        result = self._virgl.transfer(it.resource_id, it.ctx_id, *how, box, it.offset)
        self._finish()
        return result

    def _read(self, it: messages.Read) -> int:
        place = (it.stride, it.x, it.y, it.width, it.height)
        return self._virgl.read(it.resource_id, self._regions[it.region], *place)

    def _export(self, it: messages.Resource) -> int:
        if self._egl is None:
            return errno.ENOTSUP
        texture, flags = self._virgl.texture(it.resource_id)
        number, stride, offset, fourcc, modifier = self._egl.export(texture)
        with Fd(number) as fd:
            exported = Exported(self._serial, stride, offset, flags, fourcc, 0, modifier)
            send_packet(self._socket, exported.pack(), (fd.fileno(),))
        self._finishes = self._virgl.gl_string(GL_RENDERER).startswith(SOFTWARE)
        return 0

    def _finish(self) -> None:
        """Draws all that the current context was told, where no fence in the dmabuf says when that is done.

        Other contexts' commands were drawn so when they came.
        """
        if self._finishes and self._egl is not None:
            self._egl.finish()


def main() -> None:
    """Serves one session, on the socket that the command line names."""
    parser = argparse.ArgumentParser()
    parser.add_argument("socket", type=int)
    parser.add_argument("--node", default="")
    parser.add_argument("--memory", type=int, default=0)
    parser.add_argument("--sandbox", default="")
    parser.add_argument("--dmabuf", action="store_true")
    options = parser.parse_args()
    sock = socket.socket(fileno=options.socket)
    try:
        if options.memory:
            _limit(options.memory + BESIDE_RESOURCES)
        node = _open_node(options.node) if options.node else -1
        if options.sandbox != "none":
            confine_renderer(dmabuf=options.dmabuf)
        virgl = Virgl(node)
        renderer = Renderer(sock, virgl, _exporter(virgl) if options.dmabuf else None)
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error)
        sock.send(Hello(0, 0, 0, b"", b"").pack() + reason.encode())
        return
    try:
        renderer.greet()
        renderer.run()
    except ConnectionError:  # the program has ended
        pass


def _exporter(virgl: Virgl) -> Egl | None:
    """What exports textures, if anything does."""
    virgl.make_current()
    egl = Egl()
    return egl if egl.exports else None


def _open_node(path: str) -> int:
    """A render node's fd; OSError for anything else, in whose place the library would take what it likes."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    status = os.fstat(fd)
    if not stat.S_ISCHR(status.st_mode) or os.major(status.st_rdev) != DRM_MAJOR:
        os.close(fd)
        raise OSError(errno.ENODEV, "that is no render node")
    return fd


def _limit(memory: int) -> None:
    """Limits what this process allocates. A guest's contexts and shaders are counted nowhere else."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = memory if hard == resource.RLIM_INFINITY else min(memory, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


if __name__ == "__main__":
    main()
