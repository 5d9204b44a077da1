"""One queue's task on one ring after the other, without any transport."""

import asyncio

import pytest

from tests.conftest import Run
from tests.sessions import Echo
from tests.virtio.transports import OneByOne
from vhostd.frontend import SharedMemory


def test_two_may_wait_for_the_same_stop(run_async: Run, caplog: pytest.LogCaptureFixture) -> None:
    """The front-end stops a ring, and goes before that has ended: then everything stops."""

    async def main() -> None:
        device, memory = Echo(), SharedMemory(1 << 20)
        transport = OneByOne(device, memory)
        transport.negotiate()
        driver = transport.start(1)
        driver.queue.add(b"held", 4)
        runner = transport.state.queues[1]
        assert runner.queue is not None
        runner.queue.kicked()
        await device.holding.wait()
        stops = [asyncio.create_task(runner.stop()) for _ in range(2)]
        await device.ended.wait()
        device.release()
        await asyncio.gather(*stops)
        await runner.stop()
        assert (runner.started, runner.in_flight) == (False, 0)
        driver.queue.close()
        memory.close()

    run_async(main)
    assert caplog.text.count("vring 1 stopped at 2:1") == 1


def test_a_queue_is_as_enabled_at_its_start_as_it_was_before(run_async: Run) -> None:
    async def main() -> None:
        device, memory = Echo(), SharedMemory(1 << 20)
        transport = OneByOne(device, memory)
        transport.negotiate()
        driver = transport.start(0)
        runner, line = transport.state.queues[0], transport.line
        base = await transport.stop(0)
        runner.enable(on=False)
        runner.start(driver.ring(transport.state.features, base), line)
        driver.queue.add(b"later", 5)
        assert runner.queue is not None
        runner.queue.kicked()
        for _ in range(5):
            await asyncio.sleep(0)
        assert not device.served
        runner.enable(on=True)
        while not device.served:
            await asyncio.sleep(0)
        await transport.close()
        driver.queue.close()
        memory.close()

    run_async(main)
