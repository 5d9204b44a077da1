"""Rings as a front-end sees them: start and stop, notifications, what breaks them, what they refuse."""

import asyncio
import errno
import gc
import logging
import os
import select
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from tests.conftest import PATIENCE, Run
from tests.sessions import NO_FD, Echo, closed, connected, negotiated, refused
from vhostd.errors import BadRequest
from vhostd.frontend import Frontend, SharedMemory
from vhostd.frontend.queue import Queue, signalled
from vhostd.ring import Chain, Outcome, Shortcut
from vhostd.vhost_user.messages import (
    FRONT_END,
    GET_QUEUE_NUM,
    GET_VRING_BASE,
    SET_FEATURES,
    SET_STATUS,
    SET_VRING_ADDR,
    SET_VRING_BASE,
    SET_VRING_CALL,
    SET_VRING_ENABLE,
    SET_VRING_ERR,
    SET_VRING_KICK,
    SET_VRING_NUM,
    VringFd,
    VringState,
)
from vhostd.vhost_user.session import Session
from vhostd.virtio.device import Device, Handler
from vhostd.virtio.leftovers import Leftovers
from vhostd.virtio.virtqueue import Virtqueue
from vhostd.virtio.vocabulary import DeviceType, Feature, mask
from vhostd.wire.channel import Channel
from vhostd.wire.fds import Fd
from vhostd.wire.rows import U64, Empty, Row

ALL_BUT_EVENT_IDX = ~mask(Feature.EVENT_IDX)


@pytest.mark.parametrize("features", [None, ALL_BUT_EVENT_IDX], ids=["event_idx", "flags"])
def test_requests_pass_through_a_ring_that_wraps(features: int | None, run_async: Run) -> None:
    async def main() -> None:
        async with negotiated(Echo(), features) as (frontend, memory):
            queue = await frontend.start(memory, size=4)
            for number in range(50):
                data = b"request %d" % number
                assert await queue.request(data, len(data)) == data
            queue.close()

    run_async(main)


def test_buffers_offered_before_the_start_need_no_kick(run_async: Run) -> None:
    async def main() -> None:
        async with negotiated(Echo()) as (frontend, memory):
            queue = Queue(memory, 0, 8, frontend.features)
            queue.add(b"early", 5)
            await frontend.set_up(queue)
            await frontend.call(SET_VRING_CALL, VringFd(0), queue.call_fd)
            await frontend.call(SET_VRING_ENABLE, VringState(0, 1))
            await frontend.call(SET_VRING_KICK, VringFd(0), queue.kick_fd)
            assert (await queue.used())[1] == b"early"
            queue.close()

    run_async(main)


def test_a_ring_without_kick_fd_is_polled(run_async: Run) -> None:
    async def main() -> None:
        async with negotiated(Echo()) as (frontend, memory):
            queue = await frontend.start(memory)
            await frontend.call(SET_VRING_KICK, VringFd(NO_FD))
            assert await queue.request(b"polled", 6) == b"polled"
            queue.close()

    run_async(main)


def test_a_call_fd_that_comes_late_is_signalled_at_once(run_async: Run) -> None:
    async def main() -> None:
        device = Echo()
        async with negotiated(device) as (frontend, memory):
            queue = await frontend.start(memory)
            await frontend.call(SET_VRING_CALL, VringFd(NO_FD))
            os.eventfd_read(queue.call_fd.fileno())
            queue.add(b"quiet", 5)
            queue.kick()
            while not device.served:
                await frontend.call(GET_QUEUE_NUM, Empty())
            await frontend.call(SET_VRING_CALL, VringFd(0), queue.call_fd)
            assert await signalled(queue.call_fd) == 1
            queue.close()

    run_async(main)


def test_a_call_fd_in_place_of_another_is_signalled_at_once(run_async: Run) -> None:
    """What the other was told may be lost: front-ends close it unread. libvhost-user does the same."""

    async def main() -> None:
        device = Echo()
        async with negotiated(device) as (frontend, memory):
            queue = await frontend.start(memory)
            with Fd(os.eventfd(0)) as lost:
                await frontend.call(SET_VRING_CALL, VringFd(0), lost)
                os.eventfd_read(queue.call_fd.fileno())
                queue.add(b"quiet", 5)
                queue.kick()
                while not device.served:
                    await frontend.call(GET_QUEUE_NUM, Empty())
            await frontend.call(SET_VRING_CALL, VringFd(0), queue.call_fd)
            assert await signalled(queue.call_fd) == 1
            assert (await queue.used())[1] == b"quiet"
            queue.close()

    run_async(main)


def test_a_call_fd_is_signalled_before_its_ring_starts(run_async: Run) -> None:
    """QEMU's own test of vhost-user-blk waits for it."""

    async def main() -> None:
        async with negotiated(Echo()) as (frontend, _):
            with Fd(os.eventfd(0, os.EFD_NONBLOCK)) as call:
                await frontend.call(SET_VRING_CALL, VringFd(0), call)
                assert os.eventfd_read(call.fileno()) == 1

    run_async(main)


class Late(Device):
    """Its shortcut ends all chains, and its interrupts are later than any test waits."""

    kind = DeviceType.CONSOLE

    def __init__(self) -> None:
        self.shortcut = Ending()

    @property
    def queues(self) -> Sequence[Handler]:
        return [self.endq]

    async def endq(self, queue: Virtqueue) -> None:
        queue.use_shortcut(self.shortcut)
        queue.coalesce(3600)
        async for _ in queue:
            pass


class Ending(Shortcut):
    served = 0

    def serve(self, queue: object, chain: Chain) -> int:
        self.served += 1
        return Outcome.DONE


@asynccontextmanager
async def a_late_interrupt() -> AsyncIterator[tuple[Frontend, Queue]]:
    """A ring with a chain that is used, and a driver that waits to be told."""
    device = Late()
    async with negotiated(device) as (frontend, memory):
        with closing(await frontend.start(memory)) as queue:
            await signalled(queue.call_fd)  # since it is new
            assert not queue.driver.arm()
            queue.add(b"late")
            queue.kick()
            async with asyncio.timeout(PATIENCE):
                while not device.shortcut.served:
                    await asyncio.sleep(0)
            assert not readable_now(queue.call_fd)
            yield frontend, queue


def readable_now(fd: Fd) -> bool:
    return bool(select.select([fd], [], [], 0)[0])


def test_a_late_interrupt_comes_before_the_ring_stops(run_async: Run) -> None:
    async def main() -> None:
        async with a_late_interrupt() as (frontend, queue):
            await frontend.call(GET_VRING_BASE, VringState(0, 0))
            assert readable_now(queue.call_fd)

    run_async(main)


def test_a_late_interrupt_comes_when_the_ring_moves(run_async: Run) -> None:
    async def main() -> None:
        async with a_late_interrupt() as (frontend, queue):
            await frontend.call(SET_VRING_ADDR, frontend.address(queue))
            async with asyncio.timeout(PATIENCE):
                await signalled(queue.call_fd)

    run_async(main)


def test_a_disabled_ring_is_left_alone_until_it_is_enabled(run_async: Run) -> None:
    async def main() -> None:
        device = Echo()
        async with negotiated(device) as (frontend, memory):
            queue = await frontend.start(memory)
            await frontend.call(SET_VRING_ENABLE, VringState(0, 0))
            queue.add(b"later", 5)
            queue.kick()
            other = await frontend.start(memory, 1)
            other.add(b"x", 4)
            other.kick()
            await device.holding.wait()  # so the first ring's kick has been seen as well
            assert not device.served
            await frontend.call(SET_VRING_ENABLE, VringState(0, 1))
            assert (await queue.used())[1] == b"later"
            device.release()
            queue.close()
            other.close()

    run_async(main)


def test_without_protocol_features_accepted_rings_start_enabled(run_async: Run) -> None:
    async def main() -> None:
        async with negotiated(Echo()) as (frontend, memory):
            await frontend.call(SET_FEATURES, U64(mask(Feature.VERSION_1)))
            queue = Queue(memory, 0, 8, mask(Feature.VERSION_1))
            await frontend.set_up(queue)
            await frontend.call(SET_VRING_CALL, VringFd(0), queue.call_fd)
            await frontend.call(SET_VRING_KICK, VringFd(0), queue.kick_fd)
            assert await queue.request(b"enabled", 7) == b"enabled"
            queue.close()

    run_async(main)


def test_stop_waits_for_what_is_in_flight_and_goes_on_where_it_stopped(run_async: Run) -> None:
    async def main() -> None:
        device = Echo()
        async with negotiated(device) as (frontend, memory):
            queue = await frontend.start(memory, 1)
            queue.add(b"slow", 4)
            queue.kick()
            await device.holding.wait()
            stopping = asyncio.create_task(frontend.stop(queue))
            await device.ended.wait()
            queue.add(b"too late", 4)
            queue.kick()
            assert not stopping.done()
            device.release()
            assert await stopping == 1
            assert queue.poll() == (0, b"held")
            await frontend.set_up(queue, base=1)
            await frontend.call(SET_VRING_KICK, VringFd(1), queue.kick_fd)
            await device.holding.wait()
            device.release()
            assert (await queue.used())[1] == b"held"
            assert await frontend.stop(queue) == 2
            assert await frontend.stop(queue) == 2
            queue.close()

    run_async(main)


@pytest.mark.parametrize("row", [SET_VRING_NUM, SET_VRING_BASE], ids=lambda row: row.name)
def test_a_disabled_ring_stops_when_it_is_set_up_anew(row: Row[VringState, None], run_async: Run) -> None:
    """An enabled one stays. What is in flight is waited for."""

    async def main() -> None:
        device = Echo()
        async with negotiated(device) as (frontend, memory):
            queue = await frontend.start(memory, 1)
            queue.add(b"slow", 4)
            queue.kick()
            await device.holding.wait()
            await refused(frontend.call(row, VringState(1, 8)))
            await frontend.call(SET_VRING_ENABLE, VringState(1, 0))
            setting_up = asyncio.create_task(frontend.call(row, VringState(1, 8)))
            await device.ended.wait()
            assert not setting_up.done()
            device.release()
            await setting_up
            assert queue.poll() == (0, b"held")
            queue.close()
            again = await frontend.start(memory, 1)
            again.add(b"slow", 4)
            again.kick()
            await device.holding.wait()
            device.release()
            assert (await again.used())[1] == b"held"
            again.close()

    run_async(main)


@pytest.mark.parametrize(("row", "wrong"), [(SET_VRING_NUM, 3), (SET_VRING_BASE, 65536)])
def test_what_cannot_be_leaves_a_disabled_ring_as_it_was(
    row: Row[VringState, None], wrong: int, run_async: Run
) -> None:
    async def main() -> None:
        async with negotiated(Echo()) as (frontend, memory):
            queue = await frontend.start(memory)
            await frontend.call(SET_VRING_ENABLE, VringState(0, 0))
            await refused(frontend.call(row, VringState(0, wrong)))
            await frontend.call(SET_VRING_ENABLE, VringState(0, 1))
            assert await queue.request(b"still there", 11) == b"still there"
            queue.close()

    run_async(main)


def test_a_ring_stops_although_no_fd_is_left(run_async: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left() -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async def main() -> None:
        async with negotiated(Echo()) as (frontend, memory):
            queue = await frontend.start(memory)
            with monkeypatch.context() as patch:
                patch.setattr("vhostd.wire.channel.select.epoll", none_left)
                assert await frontend.stop(queue) == 0
            queue.close()

    run_async(main)


def test_a_broken_ring_signals_its_error_and_stops_alone(run_async: Run) -> None:
    async def main() -> None:
        async with negotiated(Echo()) as (frontend, memory):
            queue = await frontend.start(memory)
            queue.driver.offer(77)  # there are 64 descriptors
            queue.driver.publish()
            os.eventfd_write(queue.kick_fd.fileno(), 1)
            assert await signalled(queue.err_fd) == 1
            assert await frontend.stop(queue) == 0
            queue.close()
            fresh = await frontend.start(memory)
            assert await fresh.request(b"again", 5) == b"again"
            fresh.close()

    run_async(main)


def test_a_guest_s_error_costs_the_same_when_it_comes_late(
    run_async: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """While the handler waits for the next request, what it began with one before ends."""

    async def main() -> None:
        device = Echo()
        async with negotiated(device) as (frontend, memory):
            queue, other = await frontend.start(memory, 1), await frontend.start(memory, 0)
            queue.add(b"x", 4)
            queue.kick()
            await device.holding.wait()
            assert device.held_queue is not None
            device.held_queue.fail(BadRequest("it was nonsense"))
            device.held_queue.fail(BadRequest("and once more"))
            assert await signalled(queue.err_fd) == 1
            assert await other.request(b"fine", 4) == b"fine"
            assert await frontend.stop(queue) == 1
            assert device.held_queue is not None
            late = device.held_queue
            queue.close()
            again = await frontend.start(memory, 1)
            late.fail(BadRequest("of a ring that is gone"))
            device.held.clear()
            device.holding.clear()
            again.add(b"y", 4)
            again.kick()
            await device.holding.wait()
            device.release()
            assert (await again.used())[1] == b"held"
            again.close()
            other.close()

    run_async(main)
    assert caplog.text.count("vring 1 is broken: it was nonsense") == 1
    assert "once more" not in caplog.text
    assert "a ring that is gone" not in caplog.text


def test_a_request_that_the_device_cannot_read_breaks_the_ring(run_async: Run) -> None:
    async def main() -> None:
        async with negotiated(Echo()) as (frontend, memory):
            queue = await frontend.start(memory)
            queue.driver.add([(0xDEAD_0000_0000, 16, False)])
            queue.kick()
            assert await signalled(queue.err_fd) == 1
            queue.close()

    run_async(main)


@pytest.mark.parametrize(
    ("row", "payload"),
    [
        (SET_VRING_NUM, VringState(2, 8)),
        (SET_VRING_BASE, VringState(2, 0)),
        (SET_VRING_ENABLE, VringState(2, 1)),
        (SET_VRING_KICK, VringFd(2 | NO_FD)),
        (SET_VRING_CALL, VringFd(2 | NO_FD)),
        (SET_VRING_ERR, VringFd(255 | NO_FD)),
        (SET_VRING_NUM, VringState(0, 0)),
        (SET_VRING_NUM, VringState(0, 12)),
        (SET_VRING_NUM, VringState(0, 65536)),
        (SET_VRING_BASE, VringState(0, 65536)),
        (SET_VRING_ENABLE, VringState(0, 2)),
        (SET_VRING_KICK, VringFd(0)),  # promises an fd that did not come
        (SET_VRING_KICK, VringFd(0 | NO_FD)),  # before SET_VRING_NUM
        (SET_STATUS, U64(256)),
    ],
    ids=lambda value: value.name if isinstance(value, Row) else str(value),
)
def test_refuses_what_cannot_be(row: Row[VringState, None], payload: VringState, run_async: Run) -> None:
    async def main() -> None:
        async with negotiated(Echo()) as (frontend, memory):
            await refused(frontend.call(row, payload))
            queue = await frontend.start(memory)
            assert await queue.request(b"fine", 4) == b"fine"
            queue.close()

    run_async(main)


def test_get_vring_base_of_no_ring_closes_the_connection(run_async: Run) -> None:
    async def main() -> None:
        async with negotiated(Echo()) as (frontend, _):
            with pytest.raises(ConnectionResetError):
                await frontend.call(GET_VRING_BASE, VringState(9, 0))

    run_async(main)


def test_a_kick_needs_size_addresses_and_memory_first(
    run_async: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        memory = SharedMemory(1 << 16)
        async with connected(Echo()) as frontend:
            await frontend.negotiate()
            queue = Queue(memory, 0, 8, frontend.features)
            kick = frontend.call(SET_VRING_KICK, VringFd(0), queue.kick_fd)
            await refused(kick)
            assert "before SET_VRING_NUM" in caplog.text
            await frontend.call(SET_VRING_NUM, VringState(0, 8))
            await refused(frontend.call(SET_VRING_KICK, VringFd(0), queue.kick_fd))
            assert "before SET_VRING_ADDR" in caplog.text
            await frontend.set_up(queue)
            await refused(frontend.call(SET_VRING_KICK, VringFd(0), queue.kick_fd))
            assert "share=on" in caplog.text
            await frontend.share(memory)
            await frontend.call(SET_VRING_KICK, VringFd(0), queue.kick_fd)
            await frontend.call(SET_VRING_ENABLE, VringState(0, 1))
            await refused(frontend.call(SET_VRING_NUM, VringState(0, 16)))
            await refused(frontend.call(SET_VRING_BASE, VringState(0, 16)))
            queue.close()
        memory.close()

    run_async(main)


def test_files_are_no_eventfds(run_async: Run) -> None:
    async def main() -> None:
        async with negotiated(Echo()) as (frontend, memory):
            queue = await frontend.start(memory)
            for path in ("/", "/etc/passwd", "/dev/null"):
                with Fd(os.open(path, os.O_RDONLY)) as fd:
                    await refused(frontend.call(SET_VRING_KICK, VringFd(0), fd))
            with Fd(os.open("/etc/passwd", os.O_RDONLY)) as fd:
                await refused(frontend.call(SET_VRING_CALL, VringFd(0), fd))
            assert await queue.request(b"unharmed", 8) == b"unharmed"
            queue.close()

    run_async(main)


def test_a_kick_pipe_may_close_and_a_call_fd_be_full(run_async: Run) -> None:
    async def main() -> None:
        async with negotiated(Echo()) as (frontend, memory):
            queue = await frontend.start(memory)
            read, write = os.pipe()
            with Fd(read) as kick:
                await frontend.call(SET_VRING_KICK, VringFd(0), kick)
            os.close(write)
            with Fd(os.eventfd((1 << 64) - 2 & 0xFFFFFFFF)) as full:
                os.eventfd_write(full.fileno(), (1 << 64) - 2 - 0xFFFFFFFE)
                await frontend.call(SET_VRING_CALL, VringFd(0), full)
                queue.add(b"x", 1)
                await frontend.call(SET_VRING_KICK, VringFd(0), queue.kick_fd)
                await frontend.call(GET_QUEUE_NUM, Empty())
            await frontend.call(SET_VRING_CALL, VringFd(0), queue.call_fd)
            assert await queue.request(b"alive", 5) in (b"alive", b"x")
            queue.close()

    run_async(main)


def test_a_storm_of_kicks_is_harmless(run_async: Run) -> None:
    async def main() -> None:
        async with negotiated(Echo()) as (frontend, memory):
            queue = await frontend.start(memory)
            for number in range(1000):
                os.eventfd_write(queue.kick_fd.fileno(), 1 + number)
                if not number % 100:
                    assert await queue.request(b"calm", 4) == b"calm"
            queue.close()

    run_async(main)


def test_a_fault_of_the_device_closes_the_connection_with_its_traceback(
    run_async: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        device = Echo()
        async with negotiated(device) as (frontend, memory):
            queue = await frontend.start(memory)
            queue.add(b"!", 1)
            queue.kick()
            await closed(frontend)
            queue.close()
        async with negotiated(device) as (frontend, memory):
            queue = await frontend.start(memory)
            assert await queue.request(b"next", 4) == b"next"
            queue.close()

    run_async(main)
    faults = [record for record in caplog.records if record.exc_info]
    assert len(faults) == 1
    assert faults[0].levelno == logging.ERROR


def test_requests_in_flight_are_completed_when_the_front_end_goes(run_async: Run) -> None:
    async def main() -> None:
        device = Echo()
        async with negotiated(device) as (frontend, memory):
            queue = await frontend.start(memory, 1)
            queue.add(b"x", 4)
            queue.kick()
            await device.holding.wait()
            frontend.close()
            asyncio.get_running_loop().call_soon(device.release)
        assert queue.poll() == (0, b"held")
        queue.close()

    run_async(main)


def test_a_front_end_may_go_while_its_ring_stops(run_async: Run, caplog: pytest.LogCaptureFixture) -> None:
    """The session does not wait for a device that holds a chain, beyond its patience."""

    async def main() -> None:
        device = Echo()
        async with negotiated(device) as (frontend, memory):
            queue = await frontend.start(memory, 1)
            queue.add(b"x", 4)
            queue.kick()
            await device.holding.wait()
            data = FRONT_END.encode(GET_VRING_BASE.request, VringState(1, 0))
            await frontend.channel.send(data)
            await device.ended.wait()
            frontend.close()
            asyncio.get_running_loop().call_later(0.01, device.release)
        assert queue.poll() == (0, b"held")
        queue.close()

    run_async(main)
    assert "the front-end has gone while rings were stopping" in caplog.text


def test_whoever_takes_a_ring_over_interrupts_once(run_async: Run) -> None:
    """The one before may have died between a used element and its interrupt."""

    async def main() -> None:
        async with negotiated(Echo()) as (frontend, memory):
            queue = Queue(memory, 0, 8, frontend.features)
            await frontend.set_up(queue, base=1)
            queue.driver.set_avail_index(1)
            await frontend.call(SET_VRING_KICK, VringFd(0), queue.kick_fd)
            await frontend.call(SET_VRING_CALL, VringFd(0), queue.call_fd)
            assert await signalled(queue.call_fd) == 1
            queue.close()

    run_async(main)


class Grouped(Echo):
    """Its first queue's requests are tasks: "!" is a fault of ours, "?" one of the driver's."""

    async def echoq(self, queue: Virtqueue) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                async for chain in queue:
                    group.create_task(self.answer(queue, chain))
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None

    async def answer(self, queue: Virtqueue, chain: Chain) -> None:
        data = chain.read(1)
        try:
            if data == b"?":
                raise BadRequest("what cannot be")
            if data == b"!":
                raise ZeroDivisionError("a fault of the device")
        except Exception as error:
            itself = error  # it refers to this frame, and the frame to it
            raise itself from None
        chain.write(data)
        queue.push(chain)


@pytest.fixture
def _no_collector() -> Iterator[None]:
    """The garbage collector helps nobody, and no record of the log keeps an exception."""
    logging.disable(logging.CRITICAL)
    gc.collect()
    gc.disable()
    yield
    gc.enable()
    logging.disable(logging.NOTSET)


def mappings_of_guests() -> int:
    return Path("/proc/self/maps").read_text().count("guest-memory")


@pytest.mark.usefixtures("_no_collector")
@pytest.mark.parametrize("data", [b"x", b"?", b"!"], ids=["no-fault", "of-the-driver", "of-ours"])
@pytest.mark.parametrize("kind", [Echo, Grouped])
def test_guest_memory_is_unmapped_when_a_session_ends(run_async: Run, kind: type[Echo], data: bytes) -> None:
    """A circle of a ring, a handler's frames and the traceback of what ended it would keep it mapped."""

    async def main() -> None:
        before = mappings_of_guests()
        async with negotiated(kind()) as (frontend, memory):
            queue = await frontend.start(memory)
            queue.add(data, 1)
            queue.kick()
            if data == b"!":
                await closed(frontend)
            else:
                await signalled(queue.err_fd if data == b"?" and kind is Grouped else queue.call_fd)
            queue.close()
        del memory, queue, frontend
        assert mappings_of_guests() == before

    run_async(main)


@pytest.mark.usefixtures("_no_collector")
def test_an_inflight_area_is_unmapped_when_a_session_ends(run_async: Run) -> None:
    async def main() -> None:
        async with negotiated(Echo()) as (frontend, memory):
            area, fd = await frontend.get_inflight(1, 64)
            with fd:
                await frontend.set_inflight(area, fd)
            queue = await frontend.start(memory)
            assert "memfd:inflight" in Path("/proc/self/maps").read_text()
            queue.close()
        del queue
        assert "memfd:inflight" not in Path("/proc/self/maps").read_text()

    run_async(main)


@pytest.mark.usefixtures("_no_collector")
def test_a_request_that_only_an_error_refers_to_is_waited_for_by_no_ring(run_async: Run) -> None:
    async def main() -> None:
        async with negotiated(Grouped()) as (frontend, memory):
            queue = await frontend.start(memory)
            queue.add(b"?", 1)
            queue.kick()
            await signalled(queue.err_fd)
            await frontend.stop(queue)
            queue.close()
            queue = await frontend.start(memory)
            assert await queue.request(b"x", 1) == b"x"
            queue.close()

    run_async(main)


# --- The start rule ---------------------------------------------------------------------------------------


class Stuck(Echo):
    """Its second queue breaks at "?", and holds what it has even so; there is no end to its work on it."""

    async def holdq(self, queue: Virtqueue) -> None:
        self.held_queue = queue
        async for chain in queue:
            data = chain.read(chain.readable)
            self.held.append(chain)
            self.holding.set()
            del chain  # or the log's record of the exception holds it
            if data == b"?":
                raise BadRequest("what cannot be")


async def stuck(device: Stuck, frontend: Frontend, memory: SharedMemory) -> None:
    """Leaves a request behind that was given up, its ring broken and stopped."""
    queue = await frontend.start(memory, 1)
    queue.add(b"?", 4)
    queue.kick()
    await device.holding.wait()
    device.holding.clear()
    await frontend.stop(queue)
    assert device.held[0].given_up
    queue.close()


def test_a_ring_begins_when_nothing_of_before_is_under_way(
    run_async: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """Messages are served meanwhile, and the ring itself may be stopped."""

    async def main() -> None:
        device = Stuck()
        async with negotiated(device) as (frontend, memory):
            await stuck(device, frontend, memory)
            [left] = device.held
            device.held.clear()
            assert device.held_queue is not None
            for _ in range(2):
                queue = await frontend.start(memory, 0)
                queue.add(b"later", 5)
                queue.kick()
                for _ in range(5):
                    await frontend.call(GET_QUEUE_NUM, Empty())
                assert not device.served
                assert await frontend.stop(queue) == 0
                queue.close()
            queue = await frontend.start(memory, 0)
            queue.add(b"later", 5)
            queue.kick()
            await frontend.call(GET_QUEUE_NUM, Empty())
            assert not device.served
            device.held_queue.push(left)
            assert (await queue.used())[1] == b"later"
            queue.close()

    caplog.set_level(logging.INFO)
    run_async(main)
    assert "vring 0 waits for 1 requests that were given up before and are still under way" in caplog.text
    assert "vring 0 goes on: no request of before is under way any more" in caplog.text


def test_a_ring_waits_for_what_an_earlier_session_left(run_async: Run) -> None:
    """Its memory is gone for the new front-end, but not for who still writes to it."""

    async def main() -> None:
        device, leftovers = Stuck(), Leftovers()
        async with sharing(device, leftovers) as (frontend, memory):
            await stuck(device, frontend, memory)
        assert leftovers.requests == 1
        async with sharing(device, leftovers) as (frontend, memory):
            queue = await frontend.start(memory, 0)
            queue.add(b"later", 5)
            queue.kick()
            await frontend.call(GET_QUEUE_NUM, Empty())
            assert not device.served
            device.held.pop().write(b"old")  # which is forgotten with that, and never pushed
            assert (await queue.used())[1] == b"later"
            assert leftovers.requests == 0
            queue.close()

    run_async(main)


def test_without_leftovers_nobody_waits(run_async: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        device = Stuck()
        async with negotiated(device) as (frontend, memory):
            queue = await frontend.start(memory, 1)
            queue.add(b"x", 4)
            queue.kick()
            await device.holding.wait()
            asyncio.get_running_loop().call_soon(device.release)
            await frontend.stop(queue)
            other = await frontend.start(memory, 0)
            assert await other.request(b"now", 3) == b"now"
            other.close()
            queue.close()

    run_async(main)
    assert "waits for" not in caplog.text


@asynccontextmanager
async def sharing(device: Echo, leftovers: Leftovers) -> AsyncIterator[tuple[Frontend, SharedMemory]]:
    """A front-end, negotiated, of a session that shares leftovers with others."""
    ours, theirs = socket.socketpair()
    memory = SharedMemory(1 << 20)
    serving = asyncio.create_task(Session(device, Channel(theirs, FRONT_END), leftovers=leftovers).run())
    frontend = Frontend(ours)
    try:
        await frontend.negotiate()
        await frontend.share(memory)
        yield frontend, memory
    finally:
        frontend.close()
        await serving
        memory.close()
