"""The config space, and the device status.

**Offsets.** A front-end asks for so many bytes from an offset on. QEMU always asks from 0 on, and so some
back-ends in C look at the size only, and answer with the first bytes whatever the offset says. A front-end
that asks for a part, as Rust's do, is misled. It is a should here, since QEMU's guests never notice.

**Beyond the end.** The specification has one answer to what cannot be read: no payload. Zeroes do no harm
either, and neither does the end of the connection. Other bytes are not from the config space, so they are
from somewhere else in the program.

**Read-only fields.** "Must not accept" is understood as: the field stays as it is. Whether the write is
refused is not looked at, because without REPLY_ACK nobody would see it.

**The status.** A device that needs a reset has to say so by bit 64, and to tell a driver that is ready by a
configuration change notification (virtio 1.3, 2.1.2).
"""

import struct
from contextlib import suppress

from vhostd.conformance.check import Group, Needs
from vhostd.conformance.trial import CLOSED, Trial
from vhostd.conformance.verdict import Failed, expect, skip
from vhostd.errors import GuestError, RefusedRequest
from vhostd.frontend import Frontend, raw_message
from vhostd.vhost_user.messages import (
    CONFIG_CHANGE_MSG,
    GET_CONFIG,
    GET_STATUS,
    SET_CONFIG,
    SET_FEATURES,
    SET_STATUS,
    ConfigSpace,
    ProtocolFeature,
)
from vhostd.wire.rows import U64, Empty

CONFIG = Group("CONF", "Config space and status")

HAS_CONFIG = Needs(protocol=(ProtocolFeature.CONFIG,))
HAS_STATUS = Needs(protocol=(ProtocolFeature.STATUS,))
STATUS_WORKS = HAS_STATUS._replace(exchange=True)
SIZES = {"block": 36, "fs": 40, "gpu": 16, "input": 136, "net": 10, "scsi": 36, "sound": 12, "vsock": 8}
LEAST = 4  # bytes that the config space of any other type has
# Where a driver may not write, by type: offset and size. Capacity, tag, num_scanouts, an answer's size, CID.
READ_ONLY = {"block": (0, 8), "fs": (0, 36), "gpu": (8, 4), "input": (2, 1), "vsock": (0, 8)}
HEAD = struct.Struct("=III")  # offset, size, flags
FAR = 0xFFFF_F000
LARGEST = 256
ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET = 1, 2, 4, 8, 64


def size(trial: Trial) -> int:
    """How many bytes of the config space are surely there."""
    return SIZES.get(trial.subject.kind, LEAST)


@CONFIG.must(1, "GET_CONFIG", "The reply's payload is as long as the request's.", HAS_CONFIG)
async def sizes(trial: Trial) -> None:
    """Reads the first 4 bytes, and all that there is: each reply has as many bytes as were asked for."""
    frontend = await trial.negotiate()
    for count in (LEAST, size(trial)):
        reply = await trial.reply_to(frontend, GET_CONFIG, ConfigSpace(0, bytes(count)))
        expect(
            len(reply.payload) == 12 + count,
            f"the reply to a read of {count} bytes has {len(reply.payload)} bytes, not {12 + count}",
        )
        said = ConfigSpace.unpack(reply.payload)
        expect(len(said.data) == count, f"the reply says {len(said.data)} bytes, not {count}")


@CONFIG.should(2, "Virtio device config space", "A part may be read, from any offset on.", HAS_CONFIG)
async def offsets(trial: Trial) -> None:
    """Reads all, then again byte by byte: the bytes are the same."""
    frontend = await trial.negotiate()
    whole = await frontend.read_config(0, size(trial))
    for offset, byte in enumerate(whole):
        part = await frontend.read_config(offset, 1)
        expect(
            part == bytes([byte]),
            f"the byte at offset {offset} is {part.hex()}, and {byte:02x} in a read of all",
        )


@CONFIG.must(3, "GET_CONFIG", "Nothing is given from beyond the end of the config space.", HAS_CONFIG)
async def beyond_the_end(trial: Trial) -> None:
    """Reads from offset 0xfffff000 on: an error, zeroes, what is at offset 0, or the connection's end."""
    frontend = await trial.negotiate()
    first = await frontend.read_config(0, LEAST)
    try:
        data = await frontend.read_config(FAR, LEAST)
    except (RefusedRequest, *CLOSED):
        return
    expect(data in (bytes(LEAST), first), f"there is {data.hex()} at offset {FAR:#x}")


@CONFIG.must(4, "GET_CONFIG", "A size beyond all bounds costs the connection at most.", HAS_CONFIG)
async def absurd_size(trial: Trial) -> None:
    """Asks for 0xffffffff bytes, and for 4096, without their payload: no answer is longer than 268 bytes."""
    for count in (0xFFFF_FFFF, 4096):
        frontend = await trial.negotiate()
        await frontend.send_raw(raw_message(GET_CONFIG.request, HEAD.pack(0, count, 0)))
        with suppress(*CLOSED):
            reply = await trial.next_reply(frontend)
            expect(len(reply.payload) <= 12 + LARGEST, f"it answered by {len(reply.payload)} bytes")
        frontend.close()
        if trial.subject.is_one_shot:
            return


@CONFIG.must(5, "SET_CONFIG", "A write beyond the end changes nothing.", HAS_CONFIG)
async def write_beyond(trial: Trial) -> None:
    """Writes 16 bytes from offset 0xfffff000 on, and 256 from 128 on: the config space stays as it was."""
    before, after = await _around(trial, (FAR, bytes([0xA5] * 16)), (128, bytes([0xA5] * LARGEST)))
    expect(before == after, f"the config space was {before.hex()}, and is {after.hex()}")


@CONFIG.must(
    6,
    "SET_CONFIG",
    "A read-only field stays as it is.",
    HAS_CONFIG._replace(kinds=tuple(READ_ONLY)),
)
async def read_only(trial: Trial) -> None:
    """Writes to a field that a driver may not write: it stays as it was, refused or not."""
    offset, count = READ_ONLY[trial.subject.kind]
    before, after = await _around(trial, (offset, bytes([0xA5] * count)))
    expect(before == after, f"bytes {offset} to {offset + count} were written: now {after.hex()}")


@CONFIG.must(7, "SET_CONFIG", "A payload that is too short costs the connection at most.", HAS_CONFIG)
async def short_write(trial: Trial) -> None:
    """Sends SET_CONFIG that says 256 bytes and has none; afterwards a new front-end is served."""
    frontend = await trial.negotiate()
    await frontend.send_raw(raw_message(SET_CONFIG.request, HEAD.pack(0, LARGEST, 0)))
    await frontend.taken()


# --- The status -----------------------------------------------------------------------------------------


@CONFIG.must(8, "GET_STATUS", "The status is as it was written.", HAS_STATUS)
async def status(trial: Trial) -> None:
    """Writes ACKNOWLEDGE, then DRIVER, then FEATURES_OK, and reads each."""
    frontend = await trial.negotiate(status=True)
    for value in (ACKNOWLEDGE, ACKNOWLEDGE | DRIVER, ACKNOWLEDGE | DRIVER | FEATURES_OK):
        await frontend.call(SET_STATUS, U64(value))
        said = (await frontend.call(GET_STATUS, Empty())).value
        expect(said == value, f"the status is {said:#x}, and {value:#x} was written")


@CONFIG.must(9, "SET_STATUS", "A status of 0 resets the device.", STATUS_WORKS)
async def reset_by_status(trial: Trial) -> None:
    """Has a ring work, and writes 0: the status is 0. With features, memory, rings and DRIVER_OK the device
    then works once more.
    """
    frontend = await trial.negotiate(status=True)
    await frontend.call(SET_STATUS, U64(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK))
    ring = await trial.ring(frontend)
    await ring.work()
    for queue in ring.queues:
        await frontend.stop(queue)
    await frontend.call(SET_STATUS, U64(0))
    said = (await frontend.call(GET_STATUS, Empty())).value
    expect(not said, f"the status is {said:#x} after a reset")
    await frontend.call(SET_FEATURES, U64(frontend.features))
    await frontend.share(ring.memory)
    again = await trial.ring(frontend, ring.memory)
    await frontend.call(SET_STATUS, U64(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK))
    await again.work()


@CONFIG.must(10, "virtio 2.1", "A new front-end finds a status of 0.", HAS_STATUS)
async def status_of_a_new_connection(trial: Trial) -> None:
    """Writes a status, goes, and comes again: the status is 0."""
    frontend = await trial.negotiate(status=True)
    await frontend.call(SET_STATUS, U64(ACKNOWLEDGE))
    if not trial.subject.is_one_shot:
        frontend.close()
        said = (await (await trial.negotiate(status=True)).call(GET_STATUS, Empty())).value
        expect(not said, f"the status is {said:#x} on a new connection")


@CONFIG.should(11, "virtio 2.1.2", "A device with a broken ring needs a reset.", STATUS_WORKS)
async def needs_reset(trial: Trial) -> None:
    """Breaks a ring by a head that does not exist, waits for the err eventfd, and looks for bit 64."""
    frontend = await trial.negotiate(status=True)
    await frontend.call(SET_STATUS, U64(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK))
    await _break(trial, frontend)
    said = (await frontend.call(GET_STATUS, Empty())).value
    expect(said & NEEDS_RESET, f"the status is {said:#x}, without DEVICE_NEEDS_RESET")


@CONFIG.should(
    12,
    "virtio 2.1.2",
    "A driver that is ready is told that the device needs a reset.",
    STATUS_WORKS._replace(
        protocol=(ProtocolFeature.STATUS, ProtocolFeature.CONFIG, ProtocolFeature.BACKEND_REQ)
    ),
)
async def told_of_a_reset(trial: Trial) -> None:
    """Breaks a ring in the same way, after DRIVER_OK: a CONFIG_CHANGE_MSG comes."""
    frontend = await trial.negotiate(status=True)
    requests = await trial.requests(frontend)
    await frontend.call(SET_STATUS, U64(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK))
    await _break(trial, frontend)
    try:
        await requests.told(CONFIG_CHANGE_MSG)
    except TimeoutError:
        raise Failed("a ring is broken, and no CONFIG_CHANGE_MSG came") from None


async def _around(trial: Trial, *writes: tuple[int, bytes]) -> tuple[bytes, bytes]:
    """The config space before and after these writes, each of which may end the connection."""
    frontend = await trial.negotiate()
    before = await frontend.read_config(0, size(trial))
    for offset, data in writes:
        try:
            await frontend.write_config(offset, data)
            await frontend.read_config(0, 1)
        except RefusedRequest:
            continue
        except CLOSED:
            if trial.subject.is_one_shot:
                return before, before
            frontend = await trial.negotiate()
    return before, await frontend.read_config(0, size(trial))


async def _break(trial: Trial, frontend: Frontend) -> None:
    """Breaks a ring; skips the check if the device does not tell of that by the err eventfd."""
    ring = await trial.ring(frontend)
    await ring.work()
    ring.queue.driver.offer(ring.queue.size + 1)
    ring.queue.driver.publish()
    ring.queue.kick()
    try:
        await ring.queue.used()
    except GuestError:
        return
    except TimeoutError:
        skip("it does not tell of a broken ring")
    skip("it answers a chain whose head does not exist")
