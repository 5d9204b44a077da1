"""Drivers of devices that say what no device may. The devices' own tests show them with good ones."""

from contextlib import closing
from uuid import uuid4

import pytest

from tests.conftest import Run
from tests.frontend.drivers.lying import lying
from vhostd.errors import DeviceError
from vhostd.frontend import BlockDriver, GpuDriver, InputDriver, RngDriver, VsockDriver
from vhostd.frontend.drivers.block import FailedRequest
from vhostd.frontend.drivers.gpu import HEADER, OK, RefusedCommand
from vhostd.frontend.drivers.input import Event
from vhostd.frontend.drivers.vsock import HOST, RW, Packet


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [(b"", "wrote no status"), (bytes(100), "100 bytes where 513 were due"), (bytes(99) + b"\1", "status 1")],
)
def test_a_disk(answer: bytes, complaint: str, run_async: Run) -> None:
    async def main() -> None:
        async with lying(answer) as (frontend, memory):
            with closing(await BlockDriver.start(frontend, memory)) as driver:
                with pytest.raises(DeviceError, match=complaint) as raised:
                    await driver.read(0, 512)
                assert isinstance(raised.value, FailedRequest) == ("status 1" in complaint)

    run_async(main)


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (b"", "an answer of 0 bytes"),
        (HEADER.pack(OK, 0, 0, 0, 0) + b"?", "25 bytes for 0x1105"),
        (HEADER.pack(0x1203, 0, 0, 0, 0), "answered with 0x1203"),
        (HEADER.pack(OK, 1, 5, 0, 0), "fence .* was due"),
    ],
)
def test_a_gpu(answer: bytes, complaint: str, run_async: Run) -> None:
    if complaint.endswith("0x1105"):
        answer = HEADER.pack(0x1105, 0, 0, 0, 0) + uuid4().bytes[:1]

    async def main() -> None:
        async with lying(answer) as (frontend, memory):
            with closing(await GpuDriver.start(frontend, memory)) as driver:
                with pytest.raises(DeviceError, match=complaint) as raised:
                    await driver.assign_uuid(1)
                assert isinstance(raised.value, RefusedCommand) == ("answered" in complaint)

    run_async(main)


def test_a_gpu_that_answers_a_cursor_command_with_nothing_is_right(run_async: Run) -> None:
    async def main() -> None:
        async with lying(b"x") as (frontend, memory):
            with closing(await GpuDriver.start(frontend, memory)) as driver:
                await driver.move_cursor(0, 1, 2, 3)

    run_async(main)


def test_a_keyboard(run_async: Run) -> None:
    async def main() -> None:
        async with lying(b"seven..") as (frontend, memory):
            with closing(await InputDriver.start(frontend, memory)) as driver:
                with pytest.raises(DeviceError, match="an event of 7 bytes"):
                    await driver.event()
                await driver.send(Event(0x11, 0, 1))
                with pytest.raises(DeviceError, match="an answer of 136 bytes to the query 0x1, 0x0"):
                    await driver.name()

    run_async(main)


def test_an_entropy_source(run_async: Run) -> None:
    async def main() -> None:
        async with lying() as (frontend, memory):
            with (
                closing(await RngDriver.start(frontend, memory)) as driver,
                pytest.raises(DeviceError, match="filled nothing"),
            ):
                await driver.read(16)

    run_async(main)


def test_sockets(run_async: Run) -> None:
    """A packet that says 5 bytes, and has none."""
    wrong = Packet(
        *(HOST, 0xFF0001, 1, 1, 5, 1, RW, 0, 0, 0),
    )

    async def main() -> None:
        async with lying(wrong.pack()) as (frontend, memory):
            with (
                closing(await VsockDriver.start(frontend, memory)) as driver,
                pytest.raises(DeviceError, match="with 0 bytes of data"),
            ):
                await driver.connect(1)

    run_async(main)
