"""The data plane of an input device (virtio 1.3, 5.8).

Events come from a person, or from a file of the host, so no check waits for one.
"""

from contextlib import suppress

from vhostd.conformance.check import Group, Needs
from vhostd.conformance.trial import Trial
from vhostd.conformance.verdict import expect, skip
from vhostd.errors import RefusedRequest
from vhostd.frontend import InputDriver
from vhostd.frontend.drivers.input import CONFIG_SIZE, EVENT, ID_NAME, UNION, Event
from vhostd.vhost_user.messages import ProtocolFeature

INPUT = Group("INP", "Input device", "virtio 1.3, 5.8")

IS_INPUT = Needs(kinds=("input",), protocol=(ProtocolFeature.CONFIG,))
EV_SYN, EV_KEY, EV_ABS, EV_LED = 0, 1, 3, 0x11
EVENT_TYPES = range(0x20)


async def driver(trial: Trial) -> InputDriver:
    """The device, with both queues running."""
    frontend, memory = await trial.negotiate(), trial.memory()
    await frontend.share(memory)
    eventq = await trial.start(frontend, memory, 0)
    return InputDriver(frontend, eventq, await trial.start(frontend, memory, 1))


@INPUT.should(1, "5.8.4", "The device has a name.", IS_INPUT)
async def name(trial: Trial) -> None:
    """Selects ID_NAME: there is an answer, and it is text."""
    device = await driver(trial)
    data = await device.ask(ID_NAME)
    expect(data, "ID_NAME is empty")
    with suppress(UnicodeDecodeError):
        return expect(data.decode(), "ID_NAME is empty")
    expect(False, "ID_NAME is not UTF-8")


@INPUT.must(2, "5.8.4", "What is selected and does not exist has size 0.", IS_INPUT)
async def nothing_there(trial: Trial) -> None:
    """Selects 0xee, and event type 0xee of EV_BITS: the size is 0 for both."""
    device = await driver(trial)
    for select, subsel in ((0xEE, 0), (0x11, 0xEE)):
        data = await device.ask(select, subsel)
        expect(not data, f"select {select:#x}, subsel {subsel:#x} has {len(data)} bytes")


@INPUT.must(3, "5.8.4", "The answer of a selection is there as soon as it was selected.", IS_INPUT)
async def selections_in_turn(trial: Trial) -> None:
    """Selects all types of events twice, in both directions: each gives the same answer."""
    device = await driver(trial)
    there = {kind: await device.codes(kind) for kind in EVENT_TYPES}
    back = {kind: await device.codes(kind) for kind in reversed(EVENT_TYPES)}
    wrong = [hex(kind) for kind in EVENT_TYPES if there[kind] != back[kind]]
    expect(not wrong, f"EV_BITS differs for types {', '.join(wrong)}")


@INPUT.should(4, "5.8.4", "The device has events of some type.", IS_INPUT)
async def some_events(trial: Trial) -> None:
    """Selects EV_BITS of all types: one has bits, beside EV_SYN."""
    device = await driver(trial)
    kinds = [kind for kind in EVENT_TYPES if kind != EV_SYN and await device.codes(kind)]
    expect(kinds, "EV_BITS is empty for all types of events")


@INPUT.should(5, "5.8.4", "Each absolute axis has a range.", IS_INPUT)
async def ranges(trial: Trial) -> None:
    """Selects ABS_INFO of each code that EV_BITS has for EV_ABS: it is there, and max is not below min."""
    device = await driver(trial)
    for code in await device.codes(EV_ABS) or skip("it has no absolute axis"):
        axis = await device.axis(code)
        expect(axis is not None, f"axis {code:#x} has no ABS_INFO")
        expect(axis is None or axis.max >= axis.min, f"axis {code:#x} has a range that is upside down")


@INPUT.must(6, "5.8.6", "The device gives back what came on the statusq.", IS_INPUT)
async def status(trial: Trial) -> None:
    """Sends a LED event that the device has, or LED 0, as the guest: the buffer comes back unwritten."""
    device = await driver(trial)
    led = min(await device.codes(EV_LED), default=0)
    await device.send(Event(EV_LED, led, 0), Event(EV_SYN, 0, 0))


@INPUT.must(7, "5.8.6.2", "A status buffer of another size costs the ring at most.", IS_INPUT)
async def odd_status(trial: Trial) -> None:
    """Sends 3 bytes on the statusq; afterwards a new front-end is served."""
    device = await driver(trial)
    device.statusq.add(bytes(3))
    device.statusq.kick()
    await trial.provoke(device.frontend, device.statusq)


@INPUT.must(8, "5.8.5", "Buffers for events are kept until there are events.", IS_INPUT)
async def buffers_are_kept(trial: Trial) -> None:
    """Gives it 64 buffers, has it take a status event, and looks: none is back, or it holds an event."""
    device = await driver(trial)
    await device.send(Event(EV_LED, 0, 0))
    while (used := device.eventq.poll()) is not None:
        expect(len(used[1]) == EVENT.size, f"a buffer came back with {len(used[1])} bytes")


@INPUT.advice(9, "5.8.4", "The config space has its whole size.", IS_INPUT)
async def whole_config(trial: Trial) -> None:
    """Reads 136 bytes of the config space at once."""
    frontend = await trial.negotiate()
    try:
        space = await frontend.read_config(0, CONFIG_SIZE)
    except RefusedRequest:
        space = b""
    expect(
        len(space) == CONFIG_SIZE,
        f"{len(space)} of {CONFIG_SIZE} bytes can be read, the answer is at {UNION}",
    )
