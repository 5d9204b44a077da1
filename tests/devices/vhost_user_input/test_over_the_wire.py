"""The device behind the real session and the real ring, with a scripted front-end as the guest."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from tests.conftest import Run
from tests.devices.vhost_user_input.fakes import SYN, pack, unpack
from tests.programs import executable, listening
from tests.sessions import connected, negotiated
from vhost_user_input.description import Description, keyboard
from vhost_user_input.device import Input
from vhost_user_input.origin import Origin
from vhost_user_input.source import Sink
from vhostd import Grants
from vhostd.frontend import Frontend, InputDriver, SharedMemory
from vhostd.frontend.drivers.input import Event

QEMUS_SIZE = 4  # entries of both rings

PRESS, RELEASE = (1, 30, 1), (1, 30, 0)


class Script:
    """A source that the test plays."""

    description: Description = keyboard()

    def __init__(self) -> None:
        self.sink: Sink | None = None
        self.origin: Origin | None = None
        self.written: list[tuple[int, int, int]] = []

    def greet(self) -> None:
        pass

    def grants(self) -> Grants:
        return Grants()

    async def run(self, sink: Sink) -> None:
        self.sink = sink
        self.origin = sink.origin()

    async def says(self, *events: tuple[int, int, int]) -> None:
        assert self.sink is not None
        assert self.origin is not None
        await self.sink.room()
        self.origin.deliver(pack(*events, SYN))

    def write(self, events: bytes) -> None:
        self.written += unpack(events)

    def close(self) -> None:
        pass


@asynccontextmanager
async def guest() -> AsyncIterator[tuple[Script, Frontend, SharedMemory]]:
    source = Script()
    device = Input(source.description, [source])
    await device.run()
    async with negotiated(device) as (frontend, memory):
        yield source, frontend, memory


def test_the_config_space_as_linux_reads_it() -> None:
    async def main() -> None:
        async with guest() as (_, frontend, _memory):
            await frontend.write_config(0, b"\x11")
            await frontend.write_config(1, b"\x14")
            space = await frontend.read_config(0, 136)
            assert space[:8] == bytes((0x11, 0x14, 1, 0, 0, 0, 0, 0))
            assert space[8] == 3

    asyncio.run(main())


def test_long_reports_through_a_short_ring() -> None:
    report = [(4, 4, n) for n in range(40)]

    async def main() -> None:
        async with guest() as (source, frontend, memory):
            driver = await InputDriver.start(frontend, memory, size=QEMUS_SIZE)
            for _ in range(20):
                await source.says(*report)
            assert await driver.events(820) == [*report, SYN] * 20
            driver.close()

    asyncio.run(main())


def test_the_driver_reads_what_the_device_is() -> None:
    async def main() -> None:
        async with guest() as (source, frontend, memory):
            driver = await InputDriver.start(frontend, memory, size=QEMUS_SIZE)
            assert await driver.name() == source.description.name
            assert await driver.serial() == source.description.serial
            assert await driver.devids() == tuple(source.description.ids)
            assert await driver.properties() == set(source.description.properties)
            assert await driver.codes(1) == set(source.description.codes[1])
            assert await driver.axis(0) is None
            driver.close()

    asyncio.run(main())


@pytest.mark.parametrize("held", [True, False])
def test_a_guest_that_reboots_in_the_middle_of_a_report(held: bool) -> None:  # noqa: FBT001
    async def main() -> None:
        async with guest() as (source, frontend, memory):
            driver = await InputDriver.start(frontend, memory, size=QEMUS_SIZE, buffers=1)
            await source.says(PRESS, (1, 31, 1))
            assert await driver.events(1, refill=False) == [PRESS]
            await driver.stop()
            assert source.origin is not None
            source.origin.deliver(pack((1, 31, 0) if held else RELEASE, SYN))
            again = await InputDriver.start(frontend, memory, size=QEMUS_SIZE)
            if held:
                assert await again.events(2) == [PRESS, SYN]
            else:
                assert await again.events(3) == [RELEASE, (1, 31, 1), SYN]
            again.close()

    asyncio.run(main())


def test_leds() -> None:
    async def main() -> None:
        async with guest() as (source, frontend, memory):
            driver = await InputDriver.start(frontend, memory, size=QEMUS_SIZE)
            await driver.send(Event(0x11, 1, 1))
            assert await driver.statusq.request(b"\0" * 7) == b""
            assert await driver.statusq.request(pack((4, 4, 30)), room=8) == b""
            assert source.written == [(0x11, 1, 1), SYN]
            driver.close()

    asyncio.run(main())


def test_at_the_end_of_the_program_nothing_stays_pressed(run_async: Run, tmp_path: Path) -> None:
    """Not even of a client that goes on holding it."""
    path, keys = tmp_path / "vhost.sock", tmp_path / "keys.sock"
    command = [executable("vhost-user-input"), f"--event-socket={keys}"]

    async def main() -> None:
        with listening(command, path) as program, closing(SharedMemory(1 << 18)) as memory:
            frontend = await Frontend.connect(str(path))
            await frontend.negotiate()
            await frontend.share(memory)
            driver = await InputDriver.start(frontend, memory, size=QEMUS_SIZE)
            with socket.socket(socket.AF_UNIX) as client, closing(frontend), closing(driver):
                client.connect(str(keys))
                client.sendall(b"E: 0.0 0001 001e 1\nE: 0.0 0000 0000 0\n")
                assert await driver.events(2) == [PRESS, SYN]
                program.send()
                assert await driver.events(2) == [RELEASE, SYN]
            assert program.ends()[0] == 0

    run_async(main)


def test_a_guest_that_another_program_left_with_a_key_pressed() -> None:
    """It is told that nothing is pressed: this program cannot know what it believes."""

    async def main() -> None:
        source = Script()
        device = Input(source.description, [source])
        await device.run()
        async with connected(device) as frontend:
            with closing(SharedMemory(1 << 20)) as memory:
                await frontend.negotiate(resume=True)
                await frontend.share(memory)
                driver = await InputDriver.start(frontend, memory, size=QEMUS_SIZE)
                events = await driver.events(len(source.description.codes[1]) + 1)
                assert RELEASE in events
                assert events[-1] == SYN
                assert {event[2] for event in events} == {0}
                driver.close()

    asyncio.run(main())
