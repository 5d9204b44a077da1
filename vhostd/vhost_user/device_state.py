"""The messages about the device's state, which goes to another program when the guest migrates there.

The front-end passes an fd, and the whole state goes through that (vhost-user, "Migrating back-end state"). It
then asks whether that worked. Meanwhile all rings are stopped: a ring that starts ends a transfer.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from functools import partial

from vhostd.errors import RefusedRequest
from vhostd.host.stream import Stream
from vhostd.vhost_user.messages import CHECK_DEVICE_STATE, SET_DEVICE_STATE_FD, StateTransfer
from vhostd.virtio import saved_state
from vhostd.virtio.saved_state import Header
from vhostd.virtio.state import VirtioState
from vhostd.wire.calls import Call, Fds, answer, answer_with_fds
from vhostd.wire.channel import Channel
from vhostd.wire.fds import Fd
from vhostd.wire.rows import U64, Empty

log = logging.getLogger(__name__)

NO_FD = U64(0x100)  # accepted, and the front-end's own fd is used
# Seconds that a transfer still has once the front-end asks whether it worked: by then all bytes are sent.
PATIENCE = 10.0

Work = Callable[[Stream], Coroutine[None, None, int]]  # a transfer; the bytes that it took


class DeviceState:
    """Saves the device's state, or loads it. One transfer at a time is under way."""

    def __init__(self, state: VirtioState, channel: Channel) -> None:
        self.was_loaded = False
        self._state = state
        self._channel = channel
        self._transfer: asyncio.Task[bool] | None = None  # the last one; whether it worked
        self.calls: tuple[Call, ...] = (
            answer_with_fds(SET_DEVICE_STATE_FD, self.set_device_state_fd),
            answer(CHECK_DEVICE_STATE, self.check_device_state),
        )

    def set_device_state_fd(self, wanted: StateTransfer, fds: Fds) -> U64:
        if self._state.is_running:
            raise RefusedRequest("SET_DEVICE_STATE_FD while rings run")
        if wanted.phase != StateTransfer.STOPPED:
            raise RefusedRequest(f"SET_DEVICE_STATE_FD for phase {wanted.phase}")
        if wanted.direction not in (StateTransfer.SAVE, StateTransfer.LOAD):
            raise RefusedRequest(f"SET_DEVICE_STATE_FD in direction {wanted.direction}")
        self.end()
        if wanted.direction == StateTransfer.SAVE:
            self._begin("saved", fds[0], partial(self._save, saved_state.save(self._state.device)))
        else:
            self._begin("loaded", fds[0], self._load)
        return NO_FD

    async def check_device_state(self, _: Empty) -> U64:
        transfer = self._transfer
        if transfer is None:
            raise RefusedRequest("CHECK_DEVICE_STATE without a transfer")
        await self._channel.outlast(_end_of(transfer), "the device's state was transferred")
        if not transfer.done():
            log.error("the device's state has no end after %.0f seconds", PATIENCE)
            self.end()
            return U64(1)
        return U64(int(transfer.cancelled() or not transfer.result()))

    def end(self) -> None:
        """Ends the transfer that is under way, if there is one: a ring starts, or the session ends."""
        if self._transfer is not None:
            self._transfer.cancel()

    async def close(self) -> None:
        """Ends the transfer, and waits until that has happened."""
        self.end()
        if self._transfer is not None:
            await asyncio.wait([self._transfer])

    def _begin(self, done: str, fd: Fd, work: Work) -> None:
        try:
            stream = Stream(fd, "state")
        except OSError as error:
            raise RefusedRequest(f"SET_DEVICE_STATE_FD with an fd that is of no use: {error}") from None
        self._transfer = asyncio.create_task(self._run(done, stream, work), name="device state")
        self._transfer.add_done_callback(lambda _: stream.close())

    async def _run(self, done: str, stream: Stream, work: Work) -> bool:
        try:
            size = await work(stream)
        except (OSError, RefusedRequest) as error:
            log.error("the device's state was not %s: %s", done, error)
        except asyncio.CancelledError:
            log.warning("the device's state was not %s: the transfer was cancelled", done)
        except Exception as error:
            self._channel.abort(error)
        else:
            log.info("the device's state was %s: %d bytes", done, size)
            return True
        return False

    async def _save(self, parts: tuple[bytes, bytes], stream: Stream) -> int:
        for part in parts:
            await stream.write(part)
        return sum(map(len, parts))

    async def _load(self, stream: Stream) -> int:
        head = await stream.read(Header.SIZE)
        if len(head) < Header.SIZE:
            raise RefusedRequest(f"it ends after {len(head)} bytes")
        header = Header.unpack(head)
        saved_state.check(header, self._state.device)
        content = await stream.read(header.size + 1)
        if len(content) < header.size:
            raise RefusedRequest(f"it ends after {len(content)} bytes of {header.size}")
        if len(content) > header.size:
            raise RefusedRequest(f"it goes on after its {header.size} bytes")
        self._state.device.load(content, header.version)
        self.was_loaded = True
        return Header.SIZE + header.size


async def _end_of(transfer: "asyncio.Task[bool]") -> None:
    await asyncio.wait([transfer], timeout=PATIENCE)
