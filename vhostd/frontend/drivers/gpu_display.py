"""The front-end's end of the socket of GPU_SET_SOCKET: it answers what is asked and keeps what is shown.

The numbers are those of QEMU's docs/interop/vhost-user-gpu.rst, written down here once more, so that a
device of ours and this display check each other.
"""

import array
import asyncio
import socket
import struct
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Self

from vhostd.errors import DeviceError
from vhostd.frontend.drivers.gpu_dmabuf import Dmabuf
from vhostd.frontend.frontend import Frontend
from vhostd.vhost_user.messages import GPU_SET_SOCKET
from vhostd.wire.fds import Fd
from vhostd.wire.rows import Empty

GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES, GET_DISPLAY_INFO = 1, 2, 3
CURSOR_POS, CURSOR_POS_HIDE, CURSOR_UPDATE = 4, 5, 6
SCANOUT, UPDATE, DMABUF_SCANOUT, DMABUF_UPDATE, GET_EDID, DMABUF_SCANOUT2 = 7, 8, 9, 10, 11, 12

EDID, DMABUF2 = 1 << 0, 1 << 1  # protocol features

REPLY = 4  # a flag
HEADER = struct.Struct("=III")  # request, flags, size of the payload
PIXEL = 4  # bytes
CURSOR_SIZE = 64 * 64 * PIXEL
SCANOUTS = 16
ONE_FD = socket.CMSG_SPACE(struct.calcsize("i"))

Mode = tuple[int, int]  # width, height
FULL_HD: Mode = (1920, 1080)
Steps = Generator[memoryview, None, None]  # yields what to fill next, and goes on when it is full


@dataclass
class Cursor:
    """A cursor as it was last heard of."""

    x: int = 0
    y: int = 0
    hot_x: int = 0
    hot_y: int = 0
    shape: bytes = b""
    is_visible: bool = False


@dataclass
class Monitor:
    """A scan-out: its picture, row by row, and the cursor on it."""

    width: int = 0
    height: int = 0
    pixels: bytearray = field(default_factory=bytearray)
    cursor: Cursor = field(default_factory=Cursor)
    dmabuf: Dmabuf | None = None


class GpuDisplay:
    """Takes what a GPU shows over a connected socket, which it owns; begins at once.

    `modes` are the first scan-outs', None for one without a monitor; `silent` has the requests that get no
    answer. `until` raises DeviceError for what no GPU may send.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        features: int = EDID,
        modes: Sequence[Mode | None] = (FULL_HD,),
        edid: bytes = bytes(range(128)),
    ) -> None:
        sock.setblocking(False)
        self.patience: float | None = None
        self.features = features
        self.modes = modes
        self.edid = edid
        self.silent: set[int] = set()
        self.accepted: int | None = None  # protocol features
        self.monitors = [Monitor() for _ in range(SCANOUTS)]
        self.requests = [0] * (DMABUF_SCANOUT2 + 1)  # how often each came
        self.bytes = 0
        self.flags = 0  # of all requests; must stay 0, which QEMU's own program does not know
        self.is_over = False  # the GPU has closed the socket
        self._failure: DeviceError | None = None
        self._socket = sock
        self._fd: Fd | None = None  # that came with the message at hand
        self._spare = bytearray()
        self._news = asyncio.Event()
        self._steps = self._receive()
        self._room = next(self._steps)
        self._loop = asyncio.get_running_loop()
        self.resume()

    @classmethod
    async def show(
        cls,
        frontend: Frontend,
        *,
        features: int = EDID,
        modes: Sequence[Mode | None] = (FULL_HD,),
        is_reading: bool = True,
    ) -> Self:
        """Hands a back-end the other end of a new display."""
        ours, theirs = socket.socketpair()
        display = cls(ours, features=features, modes=modes)
        display.patience = frontend.patience
        if not is_reading:
            display.pause()
        with Fd(theirs.detach()) as fd:
            await frontend.call(GPU_SET_SOCKET, Empty(), fd)
        return display

    @property
    def messages(self) -> int:
        """How many messages came."""
        return sum(self.requests)

    @property
    def frames(self) -> int:
        """How many of them change what is to be seen."""
        return self.requests[UPDATE] + self.requests[DMABUF_UPDATE]

    async def until(self, reached: Callable[[], bool]) -> None:
        """Waits for messages until `reached`.

        Raises ConnectionResetError if it is not and no more can come, and TimeoutError when the `patience`
        is over.
        """
        async with asyncio.timeout(self.patience):
            while not reached():
                if self._failure is not None:
                    raise self._failure
                if self.is_over:
                    raise ConnectionResetError("the GPU closed the socket")
                self._news.clear()
                await self._news.wait()

    def pause(self) -> None:
        """Reads no more, until `resume`."""
        self._loop.remove_reader(self._socket)

    def resume(self) -> None:
        """Reads whatever comes."""
        self._loop.add_reader(self._socket, self._readable)

    def close(self) -> None:
        """Closes the socket; idempotent."""
        if self._socket.fileno() >= 0:
            self.pause()
            self._socket.close()
        for monitor in self.monitors:
            _close(monitor.dmabuf)
        _close(self._fd)

    def send(self, data: bytes) -> None:
        """Sends bytes as they are."""
        if self._socket.send(data) != len(data):
            raise BlockingIOError("the GPU does not read")

    def reply(self, request: int, payload: bytes = b"") -> None:
        """Answers a request, or answers what was not asked."""
        self.send(HEADER.pack(request, REPLY, len(payload)) + payload)

    def display_info(self) -> bytes:
        """struct virtio_gpu_resp_display_info."""
        modes = [struct.pack("<IIIIII", 0, 0, *mode, 1, 0) if mode else bytes(24) for mode in self.modes]
        return struct.pack("<IIQII", 0x1101, 0, 0, 0, 0) + b"".join(modes).ljust(24 * SCANOUTS, b"\0")

    def edid_info(self) -> bytes:
        """struct virtio_gpu_resp_edid."""
        head = struct.pack("<IIQIIII", 0x1104, 0, 0, 0, 0, len(self.edid), 0)
        return head + self.edid.ljust(1024, b"\0")

    # --- Receiving --------------------------------------------------------------------------------------

    def _readable(self) -> None:
        try:
            while True:
                size, ancillary, *_ = self._socket.recvmsg_into([self._room], ONE_FD, socket.MSG_CMSG_CLOEXEC)
                for _, _, data in ancillary:
                    self._fd = Fd(array.array("i", data)[0])
                if not size:
                    raise ConnectionResetError
                self.bytes += size
                self._room = self._room[size:] if size < len(self._room) else next(self._steps)
        except BlockingIOError:
            pass
        except ConnectionError:
            self._end()
        except DeviceError as failure:
            self._failure = failure
            self._end()

    def _end(self) -> None:
        """Closes, so that a GPU does not wait until it is read."""
        self.is_over = True
        self.close()
        self._news.set()

    def _receive(self) -> Steps:
        """One message after the other."""
        header = bytearray(HEADER.size)
        while True:
            yield memoryview(header)
            request, flags, size = HEADER.unpack(header)
            self.flags |= flags
            _must(request in SIZES, f"request {request}")
            least = SIZES[request]
            _must(size == least or (request == UPDATE and size > least), f"{size} bytes in {request}")
            payload = bytearray(least)
            if least:
                yield memoryview(payload)
            if request == UPDATE:
                yield from self._update(struct.unpack("=IIIII", payload), size - least)
            else:
                self._handle(request, bytes(payload))
            _must(self._fd is None, f"an fd with request {request}")
            self.requests[request] += 1
            self._news.set()

    def _update(self, fields: tuple[int, ...], size: int) -> Steps:
        """Pixels go straight to their place in the picture where they are whole rows."""
        monitor = self._monitor(fields[0])
        x, y, width, height = fields[1:]
        row, stride = width * PIXEL, monitor.width * PIXEL
        _must(size == row * height, f"{size} bytes for {width}x{height}")
        _must(x + width <= monitor.width, f"columns {x} to {x + width} of {monitor.width}")
        _must(y + height <= monitor.height, f"rows {y} to {y + height} of {monitor.height}")
        if row == stride and size:
            yield memoryview(monitor.pixels)[y * stride : (y + height) * stride]
        elif size:
            if len(self._spare) < size:
                self._spare = bytearray(size)
            part = memoryview(self._spare)[:size]
            yield part
            for at in range(height):
                start = (y + at) * stride + x * PIXEL
                monitor.pixels[start : start + row] = part[at * row : (at + 1) * row]

    def _handle(self, request: int, payload: bytes) -> None:
        """Everything but the pixels of an update."""
        if request in ANSWERS:
            if request not in self.silent:
                self.reply(request, ANSWERS[request](self))
        elif request == SET_PROTOCOL_FEATURES:
            (self.accepted,) = struct.unpack("=Q", payload)
            _must(not self.accepted & ~self.features, "features that were not offered")
        elif request == SCANOUT:
            self._resize(*struct.unpack("=III", payload))
        elif request in (DMABUF_SCANOUT, DMABUF_SCANOUT2):
            self._take_dmabuf(payload)
        else:
            self._cursor(request, payload)

    def _resize(self, scanout: int, width: int, height: int) -> None:
        monitor = self._monitor(scanout)
        monitor.width, monitor.height = width, height
        monitor.pixels = bytearray(width * height * PIXEL)

    def _take_dmabuf(self, payload: bytes) -> None:
        scanout, _, _, width, height = struct.unpack_from("=IIIII", payload)
        monitor = self._monitor(scanout)
        _must(
            bool(width and height) == (self._fd is not None), "a size without an fd, or the other way round"
        )
        monitor.width, monitor.height = width, height
        _close(monitor.dmabuf)
        monitor.dmabuf = None if self._fd is None else Dmabuf.of(self._fd, payload)
        self._fd = None

    def _cursor(self, request: int, payload: bytes) -> None:
        scanout, x, y = struct.unpack_from("=III", payload)
        cursor = self._monitor(scanout).cursor
        cursor.x, cursor.y = x, y
        cursor.is_visible = request != CURSOR_POS_HIDE
        if request == CURSOR_UPDATE:
            cursor.hot_x, cursor.hot_y = struct.unpack_from("=II", payload, 12)
            cursor.shape = payload[20:]

    def _monitor(self, scanout: int) -> Monitor:
        _must(scanout < SCANOUTS, f"scan-out {scanout}")
        return self.monitors[scanout]


def _must(holds: bool, what: str) -> None:  # noqa: FBT001
    if not holds:
        raise DeviceError(f"the GPU has sent {what}")


def _close(fd: Fd | Dmabuf | None) -> None:
    if fd is not None:
        fd.close()


# The payloads' sizes; pixels follow those of an update.
SIZES = {
    GET_PROTOCOL_FEATURES: 0,
    SET_PROTOCOL_FEATURES: 8,
    GET_DISPLAY_INFO: 0,
    CURSOR_POS: 12,
    CURSOR_POS_HIDE: 12,
    CURSOR_UPDATE: 20 + CURSOR_SIZE,
    SCANOUT: 12,
    UPDATE: 20,
    DMABUF_SCANOUT: 40,
    DMABUF_UPDATE: 20,
    GET_EDID: 4,
    DMABUF_SCANOUT2: 48,
}
# What is asked for has these answers.
ANSWERS: dict[int, Callable[[GpuDisplay], bytes]] = {
    GET_PROTOCOL_FEATURES: lambda display: struct.pack("=Q", display.features),
    GET_DISPLAY_INFO: GpuDisplay.display_info,
    GET_EDID: GpuDisplay.edid_info,
    DMABUF_UPDATE: lambda _: b"",
}
