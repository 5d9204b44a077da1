"""A guest's memory is unmapped when it goes: no device keeps it, not even in a circle of references."""

import gc
import logging
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.conftest import Run
from tests.sessions import negotiated
from vhost_user_blk.device import Blk
from vhost_user_gpu.device import Gpu
from vhost_user_input.device import Input
from vhost_user_rng.device import Rng
from vhostd.program.command_line import CommandLine
from vhostd.program.options import parse
from vhostd.virtio.device import Device

OPTIONS: dict[type[Device], list[str]] = {
    Rng: [],
    Gpu: [],
    Blk: ["--ram=1M", "--num-queues=1"],
    Input: ["--event-socket=EVENTS"],
}


@pytest.fixture
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_no_collector")
@pytest.mark.parametrize("held", [True, False], ids=["held", "answered"])
@pytest.mark.parametrize("kind", OPTIONS)
def test_nothing_keeps_it(
    run_async: Run,
    kind: type[Device],
    held: bool,  # noqa: FBT001
    tmp_path: Path,
) -> None:
    options = [each.replace("EVENTS", str(tmp_path / "events")) for each in OPTIONS[kind]]

    async def main() -> None:
        before = mappings_of_guests()
        with closing(kind.from_options(parse(kind, CommandLine(["device", *options])))) as device:
            async with negotiated(device) as (frontend, memory):
                queues = [await frontend.start(memory, index) for index in range(len(device.queues))]
                for queue in queues:
                    queue.add(bytes(24), room=1024)
                    queue.kick()
                if not held and kind is not Input:
                    await queues[0].used()
                for queue in queues:
                    queue.close()
            del memory, queues, queue, frontend
            assert mappings_of_guests() == before

    logging.disable(logging.CRITICAL)  # whose records keep what is told of
    try:
        run_async(main)
    finally:
        logging.disable(logging.NOTSET)


def mappings_of_guests() -> int:
    return Path("/proc/self/maps").read_text().count("guest-memory")
