"""The device's state on its way through an fd of the front-end's, which may be slow, cut, or never end."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing

import pytest

from tests.conftest import Run
from tests.sessions import Echo, connected, negotiated, refused
from vhostd.errors import RefusedRequest
from vhostd.frontend import Frontend, SharedMemory
from vhostd.host.stream import Stream
from vhostd.vhost_user import device_state
from vhostd.vhost_user.messages import (
    CHECK_DEVICE_STATE,
    GET_FEATURES,
    RESET_DEVICE,
    SET_DEVICE_STATE_FD,
    StateTransfer,
)
from vhostd.virtio.saved_state import MAGIC, Header
from vhostd.virtio.vocabulary import DeviceType
from vhostd.wire.fds import Fd
from vhostd.wire.rows import Empty

LIMIT = 1 << 20
SAVE = StateTransfer(StateTransfer.SAVE, StateTransfer.STOPPED)
LOAD = StateTransfer(StateTransfer.LOAD, StateTransfer.STOPPED)


class Keeper(Echo):
    """A device that keeps bytes. It refuses to load what begins with "no", to save "no", and has a fault."""

    state_version = 2
    state_limit = LIMIT

    def __init__(self, content: bytes = b"") -> None:
        super().__init__()
        self.content = content
        self.version = 0

    def save(self) -> bytes:
        if self.content == b"no":
            raise RefusedRequest("it cannot be saved")
        return self.content

    def load(self, state: bytes, version: int) -> None:
        if state.startswith(b"no"):
            raise RefusedRequest("it begins with no")
        if state == b"fault":
            raise ZeroDivisionError("a fault of the device")
        self.content, self.version = state, version


def saved(content: bytes, version: int = 2, kind: int = DeviceType.CONSOLE) -> bytes:
    return Header(MAGIC, kind, version, len(content)).pack() + content


@asynccontextmanager
async def agreed(device: Echo) -> AsyncIterator[Frontend]:
    async with negotiated(device) as (frontend, _memory):
        yield frontend


async def begin_load(frontend: Frontend) -> Fd:
    """Begins to load; the end of the pipe to write to."""
    theirs, ours = map(Fd, os.pipe())
    with theirs:
        await frontend.call(SET_DEVICE_STATE_FD, LOAD, theirs)
    return ours


async def begin_save(frontend: Frontend) -> Fd:
    """Begins to save; the end of the pipe to read from."""
    ours, theirs = map(Fd, os.pipe())
    with theirs:
        await frontend.call(SET_DEVICE_STATE_FD, SAVE, theirs)
    return ours


async def until_closed(fd: Fd) -> None:
    """Waits until the program has closed its end of the pipe that it reads."""
    with closing(Stream(Fd(os.dup(fd.fileno())), "writer")) as stream, pytest.raises(BrokenPipeError):
        await stream.write(bytes(LIMIT << 4))


@pytest.mark.parametrize("size", [0, 1, 100, 65536, LIMIT])
def test_a_state_goes_from_one_device_to_another(size: int, run_async: Run) -> None:
    async def main() -> None:
        source, destination = Keeper(os.urandom(size)), Keeper()
        async with agreed(source) as here, agreed(destination) as there:
            state = await here.save()
            assert state == saved(source.content)
            await there.load(state)
            assert (destination.content, destination.version) == (source.content, 2)

    run_async(main)


def test_a_device_without_a_state_takes_part(run_async: Run) -> None:
    async def main() -> None:
        async with agreed(Echo()) as here, agreed(Echo()) as there:
            await there.load(await here.save())
            await refused(there.load(saved(b"too much", version=1)))
            await there.load(await here.save())

    run_async(main)


def test_it_is_saved_again_and_again_and_the_source_goes_on(run_async: Run) -> None:
    """A migration that is cancelled leaves the source serving."""

    async def main() -> None:
        device = Keeper(b"first")
        async with negotiated(device) as (frontend, memory):
            for content in (b"first", b"second"):
                device.content = content
                with closing(await frontend.start(memory)) as queue:
                    assert await queue.request(b"echo", room=4) == b"echo"
                    await frontend.stop(queue)
                assert await frontend.save() == saved(content)

    run_async(main)


def test_an_older_program_s_state(run_async: Run) -> None:
    async def main() -> None:
        device = Keeper()
        async with agreed(device) as frontend:
            await frontend.load(saved(b"old", version=1))
            assert (device.content, device.version) == (b"old", 1)

    run_async(main)


def test_a_file_instead_of_a_pipe(run_async: Run) -> None:
    async def main() -> None:
        device = Keeper(b"kept in a file")
        async with agreed(device) as frontend:
            with Fd(os.memfd_create("state", os.MFD_CLOEXEC)) as file:
                await frontend.call(SET_DEVICE_STATE_FD, SAVE, file)
                await frontend.call(CHECK_DEVICE_STATE, Empty())
                os.lseek(file.fileno(), 0, os.SEEK_SET)
                device.content = b""
                await frontend.call(SET_DEVICE_STATE_FD, LOAD, file)
                await frontend.call(CHECK_DEVICE_STATE, Empty())
                assert device.content == b"kept in a file"

    run_async(main)


# --- What is refused ------------------------------------------------------------------------------------

STATE = saved(b"content")
WRONG = {
    "nothing": b"",
    "another device's": saved(b"content", kind=DeviceType.RNG),
    "a newer program's": saved(b"content", version=3),
    "an impossible version": saved(b"content", version=0),
    "not a state": b"\x7fELF" * 100,
    "too large": saved(bytes(LIMIT + 1)),
    "more than it says": STATE + b"x",
    "what the device refuses": saved(b"no"),
    **{f"{size} bytes of {len(STATE)}": STATE[:size] for size in range(len(STATE))},
}


@pytest.mark.parametrize("state", WRONG.values(), ids=WRONG)
def test_a_wrong_state_is_refused_in_one_line(
    state: bytes, run_async: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        device = Keeper(b"as it was")
        async with agreed(device) as frontend:
            await refused(frontend.load(state))
            lines = [
                each.getMessage()
                for each in caplog.records
                if each.levelname in ("WARNING", "ERROR") and each.name.startswith("vhostd")
            ]  # asyncio complains of a busy machine
            assert len(lines) == 1
            assert lines[0].startswith("the device's state was not loaded: it ")
            assert (device.content, device.version) == (b"as it was", 0)
            await frontend.load(saved(b"a right one"))
            assert device.content == b"a right one"

    run_async(main)


def test_bytes_that_never_end_are_read_no_further_than_needed(run_async: Run) -> None:
    async def main() -> None:
        async with agreed(Keeper()) as frontend:
            with await begin_load(frontend) as pipe:
                await until_closed(pipe)
            await refused(frontend.call(CHECK_DEVICE_STATE, Empty()))
            for file in ("/dev/zero", "/", "/dev/null"):
                with Fd(os.open(file, os.O_RDONLY)) as fd:
                    await frontend.call(SET_DEVICE_STATE_FD, LOAD, fd)
                    await refused(frontend.call(CHECK_DEVICE_STATE, Empty()))

    run_async(main)


def test_a_state_that_cannot_be_written(run_async: Run) -> None:
    async def main() -> None:
        device = Keeper(bytes(LIMIT))
        async with agreed(device) as frontend:
            with Fd(os.open("/dev/null", os.O_RDONLY)) as read_only:
                await frontend.call(SET_DEVICE_STATE_FD, SAVE, read_only)
                await refused(frontend.call(CHECK_DEVICE_STATE, Empty()))
            (await begin_save(frontend)).close()
            await refused(frontend.call(CHECK_DEVICE_STATE, Empty()))
            assert await frontend.save() == saved(bytes(LIMIT))

    run_async(main)


def test_a_device_that_cannot_be_saved(run_async: Run) -> None:
    async def main() -> None:
        async with agreed(Keeper(b"no")) as frontend:
            await refused(frontend.save())
            await frontend.load(STATE)
            await frontend.save()

    run_async(main)


@pytest.mark.parametrize(
    "wanted", [StateTransfer(2, 0), StateTransfer(0, 1), StateTransfer(1 << 31, 1 << 31)], ids=str
)
def test_a_transfer_that_is_not_defined(wanted: StateTransfer, run_async: Run) -> None:
    async def main() -> None:
        async with agreed(Keeper()) as frontend:
            with Fd(os.open("/dev/null", os.O_RDWR)) as fd:
                await refused(frontend.call(SET_DEVICE_STATE_FD, wanted, fd))

    run_async(main)


def test_an_fd_that_is_of_no_use(run_async: Run) -> None:
    async def main() -> None:
        async with agreed(Keeper()) as frontend:
            with Fd(os.open("/", os.O_PATH)) as fd:
                await refused(frontend.call(SET_DEVICE_STATE_FD, SAVE, fd))

    run_async(main)


def test_a_check_without_a_transfer(run_async: Run) -> None:
    async def main() -> None:
        async with agreed(Keeper()) as frontend:
            await refused(frontend.call(CHECK_DEVICE_STATE, Empty()))

    run_async(main)


def test_the_check_may_be_repeated(run_async: Run) -> None:
    async def main() -> None:
        async with agreed(Keeper()) as frontend:
            await frontend.save()
            await frontend.call(CHECK_DEVICE_STATE, Empty())

    run_async(main)


def test_it_needs_its_protocol_feature(run_async: Run) -> None:
    async def main() -> None:
        async with connected(Keeper()) as frontend:
            await frontend.negotiate(protocol_features=0)
            await refused(frontend.save())

    run_async(main)


def test_a_fault_of_the_device_closes_the_connection(run_async: Run) -> None:
    async def main() -> None:
        async with agreed(Keeper()) as frontend:
            with pytest.raises(ConnectionError):
                await frontend.load(saved(b"fault"))

    run_async(main)


# --- Rings ----------------------------------------------------------------------------------------------


def test_no_transfer_while_a_ring_runs(run_async: Run) -> None:
    async def main() -> None:
        async with negotiated(Keeper()) as (frontend, memory):
            with closing(await frontend.start(memory)) as queue:
                await refused(frontend.save())
                await refused(frontend.load(STATE))
                await frontend.stop(queue)
            await frontend.load(await frontend.save())

    run_async(main)


Begin = Callable[[Frontend], Awaitable[Fd]]


@pytest.mark.parametrize("begin", [begin_save, begin_load])
def test_a_ring_that_starts_ends_a_transfer(begin: Begin, run_async: Run) -> None:
    async def main() -> None:
        device = Keeper(bytes(LIMIT))
        async with negotiated(device) as (frontend, memory):
            with await begin(frontend) as pipe:
                with closing(await frontend.start(memory)) as queue:
                    assert await queue.request(b"echo", room=4) == b"echo"
                await refused(frontend.call(CHECK_DEVICE_STATE, Empty()))
                if begin is begin_load:
                    await until_closed(pipe)
            assert device.content == bytes(LIMIT)

    run_async(main)


def test_a_driver_whose_state_was_loaded_is_not_a_stranger(run_async: Run) -> None:
    async def main() -> None:
        for with_state in (True, False):
            device = Keeper(b"state")
            async with connected(device) as frontend:
                await frontend.negotiate(resume=True)
                if with_state:
                    await frontend.load(await frontend.save())
                memory = SharedMemory(1 << 16)
                await frontend.share(memory)
                (await frontend.start(memory)).close()
                memory.close()
                assert (device.generation, device.resumes) == (1, 0 if with_state else 1)

    run_async(main)


# --- Transfers that do not come to their end ------------------------------------------------------------


@pytest.mark.parametrize("begin", [begin_save, begin_load])
def test_a_new_transfer_ends_the_one_before(begin: Begin, run_async: Run) -> None:
    async def main() -> None:
        device = Keeper(bytes(LIMIT))
        async with agreed(device) as frontend:
            with await begin(frontend), await begin(frontend):
                await frontend.load(STATE)
                assert device.content == b"content"

    run_async(main)


@pytest.mark.parametrize("begin", [begin_save, begin_load])
def test_the_front_end_goes_meanwhile(begin: Begin, run_async: Run) -> None:
    """The end of the session waits for nobody who holds the pipe open."""

    async def main() -> None:
        pipes = []
        device = Keeper(bytes(LIMIT))
        for _ in range(3):
            async with agreed(device) as frontend:
                pipes.append(await begin(frontend))
        for pipe in pipes:
            pipe.close()
        assert device.content == bytes(LIMIT)

    run_async(main)


@pytest.mark.parametrize("begin", [begin_save, begin_load])
def test_the_front_end_goes_while_it_asks(begin: Begin, run_async: Run) -> None:
    async def main() -> None:
        async with agreed(Keeper(bytes(LIMIT))) as frontend:
            with await begin(frontend):
                asking = asyncio.create_task(frontend.call(CHECK_DEVICE_STATE, Empty()))
                await asyncio.sleep(0)
                frontend.close()
                with pytest.raises(ConnectionError):
                    await asking

    run_async(main)


@pytest.mark.parametrize("begin", [begin_save, begin_load])
def test_who_asks_too_early_gets_no_for_an_answer(
    begin: Begin, run_async: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A front-end that holds its end open, and asks: it would wait for itself."""
    monkeypatch.setattr(device_state, "PATIENCE", 0.01)

    async def main() -> None:
        device = Keeper(bytes(LIMIT))
        async with agreed(device) as frontend:
            with await begin(frontend):
                await refused(frontend.call(CHECK_DEVICE_STATE, Empty()))
                await frontend.call(GET_FEATURES, Empty())
            assert device.content == bytes(LIMIT)

    run_async(main)


def test_messages_are_answered_during_a_transfer(run_async: Run) -> None:
    async def main() -> None:
        device = Keeper()
        async with agreed(device) as frontend:
            with await begin_load(frontend) as pipe:
                for byte in STATE:
                    os.write(pipe.fileno(), bytes([byte]))
                    await frontend.call(GET_FEATURES, Empty())
                await frontend.call(RESET_DEVICE, Empty())
                assert device.content == b""
            await frontend.call(CHECK_DEVICE_STATE, Empty())
            assert device.content == b"content"

    run_async(main)
