"""A guest's driver of our own for the disk behind a socket."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import NamedTuple

from vhostd.frontend import Frontend, SharedMemory
from vhostd.frontend.drivers.block import (
    BLK_SIZE,
    CONFIG_WCE,
    FEATURE_DISCARD,
    FEATURE_FLUSH,
    FEATURE_WRITE_ZEROES,
    MQ,
    RO,
    BlockDriver,
)
from vhostd.virtio.vocabulary import Feature, mask

MEMORY = 32 << 20
FEATURES = mask(
    *(RO, BLK_SIZE, FEATURE_FLUSH, CONFIG_WCE, MQ, FEATURE_DISCARD, FEATURE_WRITE_ZEROES),
    *(Feature.INDIRECT_DESC, Feature.EVENT_IDX, Feature.PROTOCOL_FEATURES, Feature.VERSION_1),
)


class Guest(NamedTuple):
    """A guest with one disk."""

    frontend: Frontend
    driver: BlockDriver


@asynccontextmanager
async def guest(path: Path, *, without: int = 0, queues: int = 1, size: int = 128) -> AsyncIterator[Guest]:
    """A guest whose disk is at `path`; it knows all features of disks but those in the mask `without`."""
    with closing(await Frontend.connect(str(path))) as frontend, closing(SharedMemory(MEMORY)) as memory:
        await frontend.negotiate(FEATURES & ~without)
        await frontend.share(memory)
        with closing(
            await BlockDriver.start(frontend, memory, queues=queues, size=size, lasting=True)
        ) as driver:
            yield Guest(frontend, driver)
