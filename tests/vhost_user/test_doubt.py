"""Kicks without requests: when is that to be told of?"""

import os

import pytest

from tests.conftest import Run
from tests.sessions import Echo, negotiated
from vhostd.vhost_user.messages import GET_QUEUE_NUM, SET_VRING_ENABLE, SET_VRING_KICK, VringFd, VringState
from vhostd.wire.rows import Empty


def test_a_driver_that_writes_into_other_memory_is_told_of(
    run_async: Run, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory that is mapped privately by the front-end shows nothing of what the driver writes."""
    monkeypatch.setattr("vhostd.vhost_user.doubt.DELAY", 0.0)

    async def main() -> None:
        async with negotiated(Echo()) as (frontend, memory):
            queue = await frontend.start(memory)
            for _ in range(3):
                os.eventfd_write(queue.kick_fd.fileno(), 1)
                while "share=on" not in caplog.text:
                    await frontend.call(GET_QUEUE_NUM, Empty())
            assert await queue.request(b"late", 4) == b"late"
            queue.close()

    run_async(main)
    assert caplog.text.count("kicked, and there is no request; is share=on missing") == 1


def test_rings_are_kicked_in_vain_where_another_shows_requests(
    run_async: Run, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As QEMU does with all of them, for a guest that begins before it has said so."""
    monkeypatch.setattr("vhostd.vhost_user.doubt.DELAY", 0.0)

    async def main() -> None:
        async with negotiated(Echo()) as (frontend, memory):
            queue, idle = await frontend.start(memory, 0), await frontend.start(memory, 1)
            assert await queue.request(b"seen", 4) == b"seen"
            for _ in range(3):
                os.eventfd_write(idle.kick_fd.fileno(), 1)
                assert await queue.request(b"seen", 4) == b"seen"
            queue.close()
            idle.close()

    run_async(main)
    assert "share=on" not in caplog.text


def test_a_ring_may_be_kicked_before_its_driver_uses_it(
    run_async: Run, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As QEMU does with those of a network card; the guest has written elsewhere."""
    monkeypatch.setattr("vhostd.vhost_user.doubt.DELAY", 0.0)

    async def main() -> None:
        async with negotiated(Echo()) as (frontend, memory):
            queue = await frontend.start(memory)
            memory.map.write(memory.guest_addr + 0x8000, b"a firmware's data")
            for _ in range(10):
                os.eventfd_write(queue.kick_fd.fileno(), 1)
                await frontend.call(GET_QUEUE_NUM, Empty())
            queue.close()

    run_async(main)
    assert "share=on" not in caplog.text


def test_a_driver_whose_requests_show_is_not_doubted(
    run_async: Run, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vhostd.vhost_user.doubt.DELAY", 0.0)

    async def main() -> None:
        async with negotiated(Echo()) as (frontend, memory):
            disabled = await frontend.start(memory, 1)
            await frontend.call(SET_VRING_ENABLE, VringState(1, 0))
            disabled.add(b"later", 5)
            os.eventfd_write(disabled.kick_fd.fileno(), 1)
            queue = await frontend.start(memory)
            for _ in range(3):
                assert await queue.request(b"seen", 4) == b"seen"
                os.eventfd_write(queue.kick_fd.fileno(), 1)
            queue.close()
            disabled.close()

    run_async(main)
    assert "share=on" not in caplog.text


def test_a_ring_that_goes_on_has_shown_requests(
    run_async: Run, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a restart of the program: QEMU kicks all rings then."""
    monkeypatch.setattr("vhostd.vhost_user.doubt.DELAY", 0.0)

    async def main() -> None:
        async with negotiated(Echo()) as (frontend, memory):
            queue = await frontend.start(memory)
            assert await queue.request(b"seen", 4) == b"seen"
            await frontend.set_up(queue, await frontend.stop(queue))
            await frontend.call(SET_VRING_KICK, VringFd(0), queue.kick_fd)
            for _ in range(10):
                os.eventfd_write(queue.kick_fd.fileno(), 1)
                await frontend.call(GET_QUEUE_NUM, Empty())
            assert await queue.request(b"seen", 4) == b"seen"
            queue.close()

    run_async(main)
    assert "share=on" not in caplog.text
