"""A console device: its ports, and the messages about them (virtio 1.3, 5.3).

A front-end without a guest sees who is at the host's end of a port by messages only. So no check waits for
bytes that somebody there would have to send.

**Silence.** Which messages belong to an answer nobody says. So a check listens until nothing has come for a
while.

**Messages without sense.** The specification tells drivers what to send, and devices nothing about all else.
Such a message may be ignored, or stop its ring. It is a should that it is ignored, as QEMU and every device
in use do: a driver that is newer may send messages of which the device has not heard.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from vhostd.conformance.check import Group, Needs
from vhostd.conformance.trial import Trial
from vhostd.conformance.verdict import Failed, expect, skip
from vhostd.errors import DeviceError, RefusedRequest
from vhostd.frontend import Frontend, Queue
from vhostd.frontend.drivers import console
from vhostd.frontend.drivers.console import (
    CONTROL,
    DEVICE_READY,
    EMERG_WR,
    HEADER,
    NO_PORT,
    PORT_ADD,
    PORT_OPEN,
    PORT_READY,
    PORT_REMOVE,
    RESIZE,
    WINDOW,
    ConsoleDriver,
    Message,
    read_config,
)
from vhostd.vhost_user.messages import ProtocolFeature
from vhostd.wire.rows import Bit

CONSOLE = Group("PORT", "Console device", "virtio 1.3, 5.3")

MULTIPORT, EMERG_WRITE = Bit(console.MULTIPORT), Bit(console.EMERG_WRITE)
MULTIPORT.name, EMERG_WRITE.name = "VIRTIO_CONSOLE_F_MULTIPORT", "VIRTIO_CONSOLE_F_EMERG_WRITE"
IS_CONSOLE = Needs(kinds=("console",))
HAS_CONFIG = IS_CONSOLE._replace(protocol=(ProtocolFeature.CONFIG,))
HAS_PORTS = HAS_CONFIG._replace(features=(MULTIPORT,))

QUIET = 0.25  # seconds without a message: then there is none
MOST_MESSAGES = 4096  # of all ports that there may be
MOST_PORTS = 4  # of which queues are started
RING = 64  # descriptors
UNKNOWN = 0x7777  # no message has this number
SENSELESS = (  # port, event, value
    (0, UNKNOWN, 1),
    (0, PORT_ADD, 1),
    (0, RESIZE, 0),
    (0, PORT_OPEN, UNKNOWN),
    (NO_PORT, PORT_OPEN, 1),
    (NO_PORT, PORT_READY, 1),
)


async def start(trial: Trial, frontend: Frontend | None = None) -> tuple[Frontend, ConsoleDriver]:
    """The device, with the queues of its first ports running, and those of messages if it has some."""
    frontend = frontend or await trial.negotiate()
    memory = trial.memory()
    await frontend.share(memory)
    ports = 1
    if frontend.features >> MULTIPORT & 1:
        ports = max(min((await read_config(frontend)).max_nr_ports, MOST_PORTS), 1)
    return frontend, trial.owns(await ConsoleDriver.start(frontend, memory, ports=ports, size=RING))


async def hear(driver: ConsoleDriver) -> list[Message]:
    """What the device says until it has said nothing for a while."""
    told: list[Message] = []
    with suppress(TimeoutError):
        while True:
            async with asyncio.timeout(QUIET):
                told.append(await driver.message())
            expect(len(told) < MOST_MESSAGES, "it says no end of messages")
    return told


async def set_up(driver: ConsoleDriver) -> tuple[list[Message], list[Message]]:
    """Does what a driver does first: what it is told of ports, and then of each that it says is ready."""
    await driver.send(DEVICE_READY)
    added = await hear(driver)
    for port in ports_of(added):
        await driver.send(PORT_READY, port=port)
    return added, await hear(driver)


def ports_of(told: Sequence[Message]) -> list[int]:
    """The ports that are added, in their order."""
    return [message.port for message in told if message.event == PORT_ADD]


async def some_ports(driver: ConsoleDriver) -> list[int]:
    """The ports of a device that is set up; skips the check if there are none."""
    added, _ = await set_up(driver)
    return ports_of(added) or skip("no port was added: see PORT-3")


def pour(queue: Queue) -> None:
    """Sends as many pages of 4 KiB as the ring has room for."""
    for _ in range(RING):
        queue.add(b"0123456789abcd\r\n" * 256)
    queue.kick()


async def provoke(trial: Trial, *messages: bytes) -> None:
    """Sends messages that no driver should, and stops their ring."""
    frontend, driver = await start(trial)
    queue = driver.queues[CONTROL + 1]
    for message in messages:
        queue.add(message)
    queue.kick()
    await trial.provoke(frontend, queue)


@CONSOLE.must(
    1,
    "5.3.5.1",
    "emerg_wr may be written, even if nothing else is set up.",
    HAS_CONFIG._replace(features=(EMERG_WRITE,)),
)
async def emergency(trial: Trial) -> None:
    """Writes a line feed to emerg_wr, without a ring, or memory: it is not refused."""
    frontend = await trial.negotiate()
    try:
        await frontend.write_config(EMERG_WR, b"\n\0\0\0")
    except RefusedRequest:
        raise Failed("a write to emerg_wr was refused") from None


@CONSOLE.must(
    2,
    "5.3.5",
    "There are as many queues as max_nr_ports ports need.",
    HAS_PORTS._replace(protocol=(ProtocolFeature.CONFIG, ProtocolFeature.MQ)),
)
async def queues_of_ports(trial: Trial) -> None:
    """Reads max_nr_ports, which is not 0, and asks for the number of queues: two for each port, and two."""
    frontend = await trial.negotiate()
    most, queues = (await read_config(frontend)).max_nr_ports, await frontend.queue_num()
    expect(most, "max_nr_ports is 0")
    expect(queues >= 2 * most + 2, f"max_nr_ports is {most}, and there are {queues} queues")


@CONSOLE.should(3, "5.3.5", "A driver that is ready is told of a port.", HAS_PORTS)
async def ports_are_added(trial: Trial) -> None:
    """Sends DEVICE_READY: PORT_ADD comes."""
    _, driver = await start(trial)
    await driver.send(DEVICE_READY)
    expect(ports_of(await hear(driver)), "PORT_ADD did not come after DEVICE_READY")


@CONSOLE.must(4, "5.3.6.2.1", "A port that is added is a new one, below max_nr_ports.", HAS_PORTS)
async def ports_that_can_be(trial: Trial) -> None:
    """Sets all ports up, and looks at the number in each PORT_ADD."""
    frontend, driver = await start(trial)
    most = (await read_config(frontend)).max_nr_ports
    added, told = await set_up(driver)
    ports = ports_of([*added, *told])
    for port in ports:
        expect(port < most, f"port {port} was added, and max_nr_ports is {most}")
        expect(ports.count(port) == 1, f"port {port} was added, and was there")


@CONSOLE.should(5, "5.3.5", "A driver that is not ready is told nothing.", HAS_PORTS)
async def not_ready(trial: Trial) -> None:
    """Starts all queues, and sends nothing: no message comes."""
    _, driver = await start(trial)
    told = await hear(driver)
    expect(not told, f"message {told and told[0].event} came before DEVICE_READY")


@CONSOLE.should(6, "5.3.5", "A driver that has set a port up is told what that is.", HAS_PORTS)
async def ports_are_described(trial: Trial) -> None:
    """Answers the first PORT_ADD by PORT_READY: at least one message about this port comes."""
    _, driver = await start(trial)
    await driver.send(DEVICE_READY)
    ports = ports_of(await hear(driver)) or skip("no port was added: see PORT-3")
    await driver.send(PORT_READY, port=ports[0])
    about = [message.port for message in await hear(driver)]
    expect(ports[0] in about, f"PORT_READY of port {ports[0]} has no answer")


@CONSOLE.must(7, "5.3.6.2", "A message of the device is one that devices send, and whole.", HAS_PORTS)
async def messages(trial: Trial) -> None:
    """Sets all ports up. Each message has 8 bytes, a name behind PORT_NAME, 4 bytes behind RESIZE."""
    _, driver = await start(trial)
    try:
        added, told = await set_up(driver)
    except DeviceError as error:
        raise Failed(str(error)) from None
    for message in (*added, *told):
        event, more = message.event, message.data
        expect(
            PORT_ADD <= event <= console.PORT_NAME and event != PORT_READY,
            f"a message of type {event} came, which no device sends",
        )
        expect(event != console.PORT_NAME or more, f"port {message.port} has a name without a character")
        expect(event != RESIZE or len(more) >= WINDOW.size, f"RESIZE has {len(more)} bytes for a size")


@CONSOLE.must(8, "5.3.6.2.1", "Only a port that was added is removed.", HAS_PORTS)
async def removed_ports(trial: Trial) -> None:
    """Sets all ports up, and sends PORT_READY with value 0 of each: PORT_REMOVE comes for none but these."""
    _, driver = await start(trial)
    there = await some_ports(driver)
    for port in (*there, max(there) + 1):
        await driver.send(PORT_READY, 0, port=port)
    for message in await hear(driver):
        expect(
            message.event != PORT_REMOVE or message.port in there,
            f"port {message.port} was removed, and never added",
        )


@CONSOLE.must(9, "5.3.6.2", "A message that is cut short costs the ring at most.", HAS_PORTS)
async def cut_short(trial: Trial) -> None:
    """Sends DEVICE_READY of 7 bytes, and of 1."""
    message = HEADER.pack(NO_PORT, DEVICE_READY, 1)
    await provoke(trial, message[:-1], message[:1])


@CONSOLE.must(10, "5.3.6.2", "A message without sense costs the ring at most.", HAS_PORTS)
async def without_sense(trial: Trial) -> None:
    """Sends a message of type 0x7777, some that devices send, and some of ports that are not there."""
    await provoke(trial, *(HEADER.pack(*message) for message in SENSELESS))


@CONSOLE.should(11, "5.3.6.2", "A message without sense is ignored.", HAS_PORTS)
async def sense_comes_later(trial: Trial) -> None:
    """Sends the same, each on its own: all are taken, and DEVICE_READY after them adds ports."""
    _, driver = await start(trial)
    for port, event, value in SENSELESS:
        try:
            await driver.send(event, value, port=port)
        except TimeoutError:
            raise Failed(f"message {event:#x} of port {port:#x} was not taken") from None
    await some_ports(driver)


@CONSOLE.must(12, "5.3.6.2", "Room for less than a message costs the ring at most.", HAS_PORTS)
async def no_room(trial: Trial) -> None:
    """Offers buffers of 4 bytes to the control receiveq, and sends DEVICE_READY."""
    frontend, memory = await trial.negotiate(), trial.memory()
    await frontend.share(memory)
    queues = [await trial.start(frontend, memory, index) for index in range(CONTROL + 2)]
    for _ in range(4):
        queues[CONTROL].add(room=4)
    queues[CONTROL].kick()
    queues[CONTROL + 1].add(HEADER.pack(NO_PORT, DEVICE_READY, 1))
    queues[CONTROL + 1].kick()
    await trial.provoke(frontend, queues[CONTROL])


@CONSOLE.should(13, "5.3.5", "The next driver is told of all ports, as the first one was.", HAS_PORTS)
async def next_driver(trial: Trial) -> None:
    """Sets all ports up, stops all rings, starts them, and sets the ports up: the same ones are added."""
    frontend, driver = await start(trial)
    before = await some_ports(driver)
    await driver.stop(frontend)
    _, driver = await start(trial, frontend)
    after = ports_of((await set_up(driver))[0])
    expect(before == after, f"ports {before} were added first, and {after} when it was set up again")


@CONSOLE.should(14, "5.3.2", "Bytes that wait keep no message waiting.", HAS_PORTS)
async def bytes_and_messages(trial: Trial) -> None:
    """Sends 256 KiB to each port, which may wait, and then PORT_OPEN of each: it is taken."""
    _, driver = await start(trial)
    ports = await some_ports(driver)
    for port in ports[:MOST_PORTS]:
        pour(driver.queues[console.first_queue(port) + 1])
    for port in ports:
        try:
            await driver.send(PORT_OPEN, port=port)
        except TimeoutError:
            raise Failed(f"PORT_OPEN of port {port} was not taken while bytes waited") from None


@CONSOLE.advice(15, "5.3.6", "A console takes what its driver sends, whoever reads it.", IS_CONSOLE)
async def nobody_reads(trial: Trial) -> None:
    """Sends 256 KiB to port 0, which nobody may read: each buffer comes back. Linux spins until it does."""
    frontend, driver = await start(trial)
    if frontend.features >> MULTIPORT & 1:
        told = (await set_up(driver))[1]
        if (console.CONSOLE_PORT, 0) not in [(message.event, message.port) for message in told]:
            skip("port 0 is no console")
    queue = driver.queues[1]
    pour(queue)
    left = RING
    with suppress(TimeoutError):
        while left:
            await queue.used()
            left -= 1
    expect(not left, f"{left} buffers of 4 KiB did not come back")


@CONSOLE.must(16, "5.3.6.1", "Room, where there should be bytes, costs the ring at most.", IS_CONSOLE)
async def room_to_send(trial: Trial) -> None:
    """Offers room on the transmitq of port 0, and nothing to read."""
    frontend, driver = await start(trial)
    queue = driver.queues[1]
    queue.add(room=64)
    queue.kick()
    await trial.provoke(frontend, queue)
