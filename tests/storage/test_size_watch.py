"""Looking at the size of the image: who is told of what, while the storage answers and while it hangs."""

import asyncio
import logging
import os
import threading
from pathlib import Path

import pytest

from tests.conftest import Run
from vhostd.storage import size_watch as sizes
from vhostd.storage.image import Image

SIZE = 1 << 20
PATIENCE = 20.0


class Slow(Image):
    """An image whose host answers when it is told to."""

    def __init__(self, path: Path) -> None:
        self.asked = 0
        self.answer = threading.Event()
        self.failing = False
        self.answer.set()
        super().__init__(os.open(path, os.O_RDWR | os.O_CLOEXEC), str(path), read_only=False)

    def measure(self) -> int:
        self.asked += 1
        self.answer.wait(PATIENCE)
        if self.failing:
            raise OSError(5, "Input/output error")
        return super().measure()


@pytest.fixture
def image(tmp_path: Path) -> Slow:
    path = tmp_path / "image"
    path.write_bytes(bytes(SIZE))
    return Slow(path)


def test_who_is_told(run_async: Run, image: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "LOOK_INTERVAL", 0.001)

    async def main() -> None:
        told: asyncio.Queue[int] = asyncio.Queue()
        watch = sizes.SizeWatch(image, lambda: told.put_nowait(image.size))
        watching = asyncio.create_task(watch.run())
        os.truncate(image.path, 2 * SIZE)
        assert await told.get() == 2 * SIZE
        os.truncate(image.path, 2 * SIZE + 1)
        assert await told.get() == 2 * SIZE + 512
        os.truncate(image.path, 2 * SIZE + 512)  # which the guest sees already
        before = image.asked
        while image.asked < before + 3:
            await asyncio.sleep(0)
        assert told.empty()
        watching.cancel()
        await asyncio.wait([watching])
        image.close()

    run_async(main)


def test_a_look_that_hangs_is_waited_for_by_nobody_and_by_no_second_one(run_async: Run, image: Slow) -> None:
    async def main() -> None:
        told: asyncio.Queue[int] = asyncio.Queue()
        watch = sizes.SizeWatch(image, lambda: told.put_nowait(image.size))
        watching = asyncio.create_task(watch.run())
        await asyncio.sleep(0)
        image.answer.clear()
        before = image.asked
        os.truncate(image.path, 2 * SIZE)
        for _ in range(3):
            watch.look_now()
            while image.asked == before:
                await asyncio.sleep(0)
        assert image.asked == before + 1
        image.answer.set()
        assert await told.get() == 2 * SIZE
        watching.cancel()
        await asyncio.wait([watching])
        image.close()

    run_async(main)


def test_a_host_that_does_not_know(run_async: Run, image: Slow, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        told: asyncio.Queue[int] = asyncio.Queue()
        watch = sizes.SizeWatch(image, lambda: told.put_nowait(image.size))
        watching = asyncio.create_task(watch.run())
        await asyncio.sleep(0)
        image.failing = True
        os.truncate(image.path, 2 * SIZE)
        watch.look_now()
        while not caplog.messages:
            await asyncio.sleep(0)
        image.failing = False
        watch.look_now()
        assert await told.get() == 2 * SIZE
        watching.cancel()
        await asyncio.wait([watching])
        image.close()

    with caplog.at_level(logging.WARNING):
        run_async(main)
    assert caplog.messages == [f"the size of {image.path} is not to be had: Input/output error"]
