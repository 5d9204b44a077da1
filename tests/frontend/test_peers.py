"""A back-end that we did not write: QEMU's storage daemon."""

import asyncio
from contextlib import closing
from pathlib import Path

import pytest

from tests.blk.newer_qemu import ToolsMissing, storage_daemon
from tests.conftest import Run
from tests.storage.images import noise
from vhostd.frontend import Backend, BlockDriver, SharedMemory
from vhostd.frontend.drivers.block import SECTOR, read_config

SIZE, PAGE = 1 << 20, 4096


def daemon(image: Path) -> list[str]:
    """Its command."""
    try:
        return storage_daemon(image, Path("{socket}"))
    except ToolsMissing as missing:
        pytest.skip(str(missing))


@pytest.mark.parametrize("rings", ["split"])
def test_a_disk_of_qemu_s_that_is_killed_and_starts_again(tmp_path: Path, rings: str, run_async: Run) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(noise(SIZE))

    async def main() -> None:
        async with Backend(daemon(image), patience=20) as backend:
            for start in range(2):
                with closing(await backend.connect()) as frontend, closing(SharedMemory(8 << 20)) as memory:
                    await frontend.negotiate()
                    await frontend.share(memory)
                    assert (await read_config(frontend)).capacity * SECTOR == SIZE
                    with closing(await BlockDriver.start(frontend, memory)) as driver:
                        await asyncio.gather(
                            *(driver.write(8 * page, noise(PAGE, page)) for page in range(64))
                        )
                        await driver.flush()
                        await driver.discard((8, 8))
                        await driver.write_zeroes((8, 8))
                        assert await driver.read(8, 2 * PAGE) == bytes(PAGE) + noise(PAGE, 2)
                        assert await driver.get_id() == "vhost_user_blk"
                        if not start:
                            await backend.kill()
                            with pytest.raises(ConnectionResetError):
                                await driver.read(0, PAGE)
                            await backend.restart()
            assert image.read_bytes()[:PAGE] == noise(PAGE, 0)

    run_async(main)
