"""vhost-user-input on a real evdev node: run by tests/guest/test_input.py inside the guest.

A uinput device makes the node; a scripted front-end is the virtual machine.
"""

import asyncio
import errno
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from evdev import AbsInfo, InputDevice, UInput
from evdev import ecodes as e

from vhostd.frontend import Frontend, InputDriver, SharedMemory
from vhostd.frontend.drivers.input import Event
from vhostd.vhost_user.messages import GET_FEATURES
from vhostd.wire.rows import Empty

NAME = "made in the guest"
PATIENCE = 90.0  # seconds: a program takes several to start in an emulated guest, and the host may be busy
SYN = (e.EV_SYN, e.SYN_REPORT, 0)
CAPABILITIES: dict[int, Any] = {
    e.EV_KEY: [e.KEY_A, e.KEY_B, e.BTN_TOUCH],
    e.EV_ABS: [(e.ABS_X, AbsInfo(7, -10, 4000, 1, 2, 40)), (e.ABS_Y, AbsInfo(0, 0, 3000, 0, 0, 41))],
    e.EV_LED: [e.LED_CAPSL, e.LED_NUML],
    e.EV_SND: [e.SND_BELL],
}


@pytest.fixture
def node() -> Iterator[UInput]:
    device = UInput(CAPABILITIES, NAME, vendor=0x1234, product=0x5678, version=3, bustype=3)
    yield device
    device.close()


def path_of(device: UInput) -> str:
    return str(device.device.path)


def start(path: str, *options: str) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """The program on the node, and the front-end's end of its socket."""
    ours, theirs = socket.socketpair()
    with theirs:
        program = Path(sys.executable).with_name("vhost-user-input")
        command = [str(program), f"--fd={theirs.fileno()}", f"--evdev-path={path}", *options]
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stderr=subprocess.PIPE)
    return process, ours


@asynccontextmanager
async def driver(sock: socket.socket) -> AsyncIterator[InputDriver]:
    memory = SharedMemory(1 << 20)
    frontend = Frontend(sock, patience=PATIENCE)
    await frontend.negotiate()
    await frontend.share(memory)
    attached = await InputDriver.start(frontend, memory, size=4)
    try:
        yield attached
    finally:
        frontend.close()
        attached.close()
        memory.close()


def run(path: str, scenario: Callable[[InputDriver], Awaitable[None]], *options: str) -> str:
    """Runs a scenario against the program, which must end with status 0; returns what it logged."""

    async def main() -> None:
        async with driver(sock) as attached:
            await scenario(attached)

    process, sock = start(path, *options)
    try:
        asyncio.run(main())
        _, log = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 0, log
    return log.decode()


def emit(device: UInput, *events: tuple[int, int, int]) -> None:
    for event in events:
        device.write(*event)


async def event_of(device: InputDevice[str]) -> tuple[int, int, int]:
    """The next event that a program of the host gets."""
    async with asyncio.timeout(PATIENCE):
        while (event := device.read_one()) is None:
            await asyncio.sleep(0)
    return event.type, event.code, event.value


def is_grabbed(path: str) -> bool:
    other = InputDevice(path)
    try:
        other.grab()
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return True
    finally:
        other.close()
    return False


async def taken(driver: InputDriver, path: str) -> None:
    """Waits until the guest has the node: until it is grabbed, and the program has read its state after that.

    What is typed between the two is lost, as it should be; on a busy machine that takes a while.
    """
    await until(partial(is_grabbed, path))
    await driver.frontend.call(GET_FEATURES, Empty())


def test_the_node_is_described_whole(node: UInput) -> None:
    async def scenario(driver: InputDriver) -> None:
        assert await driver.name() == NAME
        assert await driver.devids() == (3, 0x1234, 0x5678, 3)
        assert await driver.axis(e.ABS_X) == (-10, 4000, 1, 2, 40)
        assert await driver.codes(e.EV_KEY) == {e.KEY_A, e.KEY_B, e.BTN_TOUCH}
        assert await driver.codes(e.EV_SND) == {e.SND_BELL}

    run(path_of(node), scenario)


def test_events_pass_and_the_node_is_grabbed(node: UInput) -> None:
    async def scenario(driver: InputDriver) -> None:
        assert await driver.events(2) == [(e.EV_ABS, e.ABS_X, 7), SYN]  # where the axis was already
        report = [
            (e.EV_KEY, e.KEY_A, 1),
            (e.EV_ABS, e.ABS_X, 5),
            (e.EV_ABS, e.ABS_Y, 6),
            (e.EV_KEY, e.BTN_TOUCH, 1),
        ]
        emit(node, *report, SYN)
        assert await driver.events(5) == [*report, SYN]
        assert is_grabbed(path_of(node))

    run(path_of(node), scenario)
    assert not is_grabbed(path_of(node))


def test_a_node_is_grabbed_when_its_keys_are_up(node: UInput) -> None:
    """So that the host sees the end of the stroke that started the virtual machine; the guest none of it."""

    async def scenario(driver: InputDriver) -> None:
        with closing(InputDevice(path_of(node))) as host:
            emit(node, (e.EV_KEY, e.KEY_B, 1), SYN, (e.EV_KEY, e.KEY_B, 0), SYN)
            assert [await event_of(host) for _ in range(4)][2:] == [(e.EV_KEY, e.KEY_B, 0), SYN]
            assert not is_grabbed(path_of(node))
            emit(node, (e.EV_KEY, e.KEY_A, 0), SYN)
            assert [await event_of(host) for _ in range(2)] == [(e.EV_KEY, e.KEY_A, 0), SYN]
            await taken(driver, path_of(node))
            assert await driver.events(2) == [(e.EV_ABS, e.ABS_X, 7), SYN]
            emit(node, (e.EV_KEY, e.KEY_B, 1), SYN)
            assert await driver.events(2) == [(e.EV_KEY, e.KEY_B, 1), SYN]
            assert host.read_one() is None

    emit(node, (e.EV_KEY, e.KEY_A, 1), SYN)
    run(path_of(node), scenario)


def test_the_node_is_the_hosts_while_no_guest_takes_events(node: UInput) -> None:
    """Before its driver listens, while it pauses, and after it; nothing that is typed then reaches it."""
    path = path_of(node)
    stroke = [(e.EV_KEY, e.KEY_A, 1), SYN, (e.EV_KEY, e.KEY_A, 0), SYN]

    async def main() -> None:
        memory = SharedMemory(1 << 20)
        frontend = Frontend(sock)
        await frontend.negotiate()
        await frontend.share(memory)
        with closing(InputDevice(path)) as host, closing(memory), closing(frontend):
            expected = [(e.EV_ABS, e.ABS_X, 7), SYN]
            for _ in range(2):
                assert not is_grabbed(path)
                emit(node, *stroke)
                assert [await event_of(host) for _ in stroke] == stroke
                eventq = await frontend.start(memory, 0, 4)
                driver = InputDriver(frontend, eventq, eventq)
                await taken(driver, path)
                assert await driver.events(len(expected)) == expected
                emit(node, (e.EV_KEY, e.KEY_B, 1), SYN)
                assert await driver.events(2) == [(e.EV_KEY, e.KEY_B, 1), SYN]
                await frontend.stop(eventq)
                eventq.close()
                await until(lambda: not is_grabbed(path))
                emit(node, (e.EV_KEY, e.KEY_B, 0), SYN)
                assert [await event_of(host) for _ in range(2)] == [(e.EV_KEY, e.KEY_B, 0), SYN]
                expected = [(e.EV_KEY, e.KEY_B, 0), (e.EV_ABS, e.ABS_X, 7), SYN]

    process, sock = start(path)
    try:
        asyncio.run(main())
        _, log = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 0, log


def test_both_control_keys_give_the_node_to_the_host_and_back(control: UInput) -> None:
    path = path_of(control)
    keys = (e.KEY_LEFTCTRL, e.KEY_RIGHTCTRL)
    chord = [each for value in (1, 0) for key in keys for each in ((e.EV_KEY, key, value), SYN)]
    stroke = [(e.EV_KEY, e.KEY_A, 1), SYN, (e.EV_KEY, e.KEY_A, 0), SYN]

    async def scenario(driver: InputDriver) -> None:
        with closing(InputDevice(path)) as host:
            await taken(driver, path)
            emit(control, *chord)
            assert await driver.events(len(chord)) == chord
            await until(lambda: not is_grabbed(path))
            emit(control, *stroke, *chord)
            assert [await event_of(host) for _ in (*stroke, *chord)] == [*stroke, *chord]
            await taken(driver, path)
            emit(control, *stroke)
            assert await driver.events(len(stroke)) == stroke

    run(path, scenario, "--grab-toggle")


@pytest.fixture
def control() -> Iterator[UInput]:
    """A keyboard with the keys of the chord."""
    device = UInput({e.EV_KEY: [e.KEY_LEFTCTRL, e.KEY_RIGHTCTRL, e.KEY_A]}, "a small keyboard")
    yield device
    device.close()


@pytest.mark.parametrize("options", [(), ("--sandbox=none",)])
def test_an_unplugged_device_is_waited_for(tmp_path: Path, options: tuple[str, ...]) -> None:
    """By a name that stays. The guest's device stays as well, and nothing stays pressed on it."""
    link = tmp_path / "by-id"
    stroke = [(e.EV_KEY, e.KEY_A, 1), SYN]

    async def main() -> None:
        async with driver(sock) as attached:
            node = first
            for _ in range(3):
                await taken(attached, path_of(node))
                if node is first:
                    assert await attached.events(2) == [(e.EV_ABS, e.ABS_X, 7), SYN]
                emit(node, *stroke)
                expected = [*stroke, (e.EV_KEY, e.KEY_A, 0), SYN]
                assert await attached.events(2) == expected[:2]
                link.unlink()
                node.close()
                assert await attached.events(2) == expected[2:]
                node = UInput(CAPABILITIES, NAME, vendor=0x1234, product=0x5678, version=3, bustype=3)
                link.symlink_to(path_of(node))
            node.close()

    process, sock = start(str(link), "--wait", *options)
    first = UInput(CAPABILITIES, NAME, vendor=0x1234, product=0x5678, version=3, bustype=3)
    link.symlink_to(path_of(first))  # while the program waits for it already, or before
    try:
        asyncio.run(main())
        _, log = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 0, log


def test_the_wait_at_the_start_ends_with_a_signal(tmp_path: Path) -> None:
    process, sock = start(str(tmp_path / "none"), "--wait")
    assert process.stderr is not None
    assert b"is waited for" in process.stderr.readline()
    process.terminate()
    assert process.wait(20) == 0
    process.stderr.close()
    sock.close()


def test_without_grab_others_get_the_events_too(node: UInput) -> None:
    async def scenario(driver: InputDriver) -> None:
        await driver.events(2)
        other = InputDevice(path_of(node))
        emit(node, (e.EV_KEY, e.KEY_B, 1), SYN)
        assert await driver.events(2) == [(e.EV_KEY, e.KEY_B, 1), SYN]
        assert [(event.type, event.code, event.value) for event in other.read()] == [
            (e.EV_KEY, e.KEY_B, 1),
            SYN,
        ]
        other.close()
        assert not is_grabbed(path_of(node))

    run(path_of(node), scenario, "--no-grab")


def test_leds_and_sounds_go_back_to_the_node(node: UInput) -> None:
    async def scenario(driver: InputDriver) -> None:
        for event in ((e.EV_LED, e.LED_CAPSL, 1), (e.EV_SND, e.SND_BELL, 1), (e.EV_LED, e.LED_CAPSL, 0)):
            await driver.send(Event(*event))
            await until(partial(written, node, event))
        assert InputDevice(path_of(node)).leds() == []

    run(path_of(node), scenario)


def test_the_host_gets_its_leds_back(node: UInput) -> None:
    async def scenario(driver: InputDriver) -> None:
        for event in ((e.EV_LED, e.LED_CAPSL, 1), (e.EV_LED, e.LED_NUML, 0)):
            await driver.send(Event(*event))
            await until(partial(written, node, event))

    with closing(InputDevice(path_of(node))) as host:
        host.set_led(e.LED_NUML, 1)
        run(path_of(node), scenario)
        assert host.leds() == [e.LED_NUML]


seen: list[tuple[int, int, int]] = []


def written(node: UInput, event: tuple[int, int, int]) -> bool:
    """Whether the kernel has passed the event on to the device."""
    try:
        seen.extend((each.type, each.code, each.value) for each in node.read())
    except BlockingIOError:
        return False
    return event in seen


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0)


def test_an_unplugged_node_ends_the_program_with_one_line(node: UInput) -> None:
    async def main() -> None:
        async with driver(sock) as attached:
            await attached.events(2)
            node.close()
            assert await attached.frontend.channel.receive() is None

    process, sock = start(path_of(node))
    asyncio.run(main())
    _, log = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert log.decode().splitlines()[-1].count(path_of(node)) == 1


@pytest.mark.parametrize("path", ["/dev/null", "/dev/input/event99", "/proc"])
def test_what_is_no_node_is_refused(path: str) -> None:
    process, sock = start(path)
    sock.close()
    _, log = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    (line,) = log.decode().splitlines()
    assert path in line
