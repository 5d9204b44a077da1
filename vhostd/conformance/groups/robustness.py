"""A front-end that goes at any moment, comes too often, or is wrong.

The front-end is trusted with the guest. But it ends, is killed, and has faults: that costs its connection at
most, and leaves nothing behind.

**A second front-end** while one is served: the specification says nothing. It must not disturb the first.
What becomes of it differs: most programs leave it in the queue of their socket, where QEMU and others wait
for an answer without a word to their user, for as long as the first one stays. So it should hear at once that
it is not served, or be served.

**Interrupts that nobody takes.** The call fd of a front-end that has stopped reading is full in the end. One
that does not block tells that to whoever signals it, and the ring should go on: the driver looks at the used
ring once more. A blocking one is the front-end's own fault; that a back-end survives it, too, is advice.
"""

import os
import random
import socket
from contextlib import suppress
from typing import Any

from vhostd.conformance.check import Group, Needs
from vhostd.conformance.groups.memory import wrong_kinds
from vhostd.conformance.ring import CLOSED, MOST_KICKS
from vhostd.conformance.trial import Trial
from vhostd.conformance.verdict import Failed, expect, skip
from vhostd.errors import RefusedRequest
from vhostd.frontend import raw_message
from vhostd.vhost_user.messages import (
    GET_FEATURES,
    GET_PROTOCOL_FEATURES,
    GET_VRING_BASE,
    SET_BACKEND_REQ_FD,
    SET_FEATURES,
    SET_MEM_TABLE,
    SET_OWNER,
    SET_PROTOCOL_FEATURES,
    SET_VRING_ADDR,
    SET_VRING_BASE,
    SET_VRING_CALL,
    SET_VRING_ENABLE,
    SET_VRING_ERR,
    SET_VRING_KICK,
    SET_VRING_NUM,
    MemoryTable,
    ProtocolFeature,
    VringAddr,
    VringFd,
    VringState,
)
from vhostd.virtio.vocabulary import Feature, mask
from vhostd.wire.fds import Fd
from vhostd.wire.framing import NEED_REPLY, VERSION
from vhostd.wire.rows import U64, Empty, Row

ROBUSTNESS = Group("ROB", "Front-ends that fail")

WORKS = Needs(exchange=True)
LASTS = Needs(exchange=True, program=True)

Step = tuple[Row[Any, Any], Any, list[Fd]]  # a request, and its fds

SIZE = 1 << 20
BIT_30 = (GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES, SET_VRING_ENABLE)
FLOOD = 2000  # requests whose replies no socket holds at once
ROUNDS = 20  # connections
SPARE = 1 << 20  # bytes that a program may grow in so many rounds
MOST_FDS = 253  # that a message can carry


# --- To go ----------------------------------------------------------------------------------------------


def handshake(trial: Trial) -> list[Step]:
    """What a front-end says until its first ring runs, message by message, with their fds.

    A back-end without bit 30 does not get those messages that need it, and need not answer them.
    """
    memory = trial.memory(SIZE)
    kick, call = (trial.eventfd() for _ in range(2))
    area = memory.user_addr
    features = trial.subject.features & ~mask(Feature.LOG_ALL, Feature.ACCESS_PLATFORM, Feature.RING_PACKED)
    steps: list[Step] = [
        (GET_FEATURES, Empty(), []),
        (GET_PROTOCOL_FEATURES, Empty(), []),
        (SET_PROTOCOL_FEATURES, U64(trial.subject.protocol_features & mask(ProtocolFeature.MQ)), []),
        (SET_OWNER, Empty(), []),
        (SET_FEATURES, U64(features), []),
        (SET_MEM_TABLE, MemoryTable((memory.region,)), [memory.fd]),
        (SET_VRING_NUM, VringState(0, 64), []),
        (SET_VRING_BASE, VringState(0, 0), []),
        (SET_VRING_ADDR, VringAddr(0, 0, area, area + 8192, area + 4096, 0), []),
        (SET_VRING_KICK, VringFd(0), [kick]),
        (SET_VRING_CALL, VringFd(0), [call]),
        (SET_VRING_ENABLE, VringState(0, 1), []),
    ]
    return [step for step in steps if trial.subject.has(Feature.PROTOCOL_FEATURES) or step[0] not in BIT_30]


@ROBUSTNESS.must(1, "Front-end disconnect", "A front-end may go at any moment.")
async def goes_at_each_stage(trial: Trial) -> None:
    """Says ever more of a handshake, until a ring runs, and goes; a new front-end is served after each."""
    steps = handshake(trial)
    for count in range(len(steps) + 1):
        frontend = await trial.connect()
        with suppress(RefusedRequest, *CLOSED):
            for row, payload, fds in steps[:count]:
                await frontend.call(row, payload, *fds)
            await frontend.taken()
        await trial.survived(frontend, f"a front-end that goes after {count} messages")


@ROBUSTNESS.must(2, "Front-end disconnect", "A front-end may go while its requests are served.", WORKS)
async def goes_with_requests(trial: Trial) -> None:
    """Makes a ring full of valid requests available, kicks, and goes at once: eight times."""
    for _ in range(8):
        ring = await trial.ring()
        with suppress(IndexError):
            while True:
                ring.post()
        ring.kick()
        await trial.survived(ring.frontend, "a front-end that goes with requests in flight")


@ROBUSTNESS.must(3, "Front-end disconnect", "A front-end may go without taking its replies.")
async def goes_with_replies(trial: Trial) -> None:
    """Sends GET_FEATURES 2000 times, reads no more than the first reply, and goes; then the same on a
    connection that is shut down for reading. A new front-end is served after each.
    """
    requests = trial.message(GET_FEATURES, Empty()) * FLOOD
    frontend = await trial.connect()
    with suppress(*CLOSED, TimeoutError):
        await frontend.send_raw(requests)
        await frontend.receive_raw()
    await trial.survived(frontend, "a front-end that goes with replies unread")
    frontend = await trial.connect()
    frontend.hear_no_more()
    with suppress(*CLOSED, TimeoutError):
        await frontend.send_raw(requests)
        await frontend.taken()
    await trial.survived(frontend, "a front-end that reads no replies")


@ROBUSTNESS.should(4, "Message Specification", "Replies that are taken late are not lost.")
async def takes_replies_late(trial: Trial) -> None:
    """Sends GET_FEATURES 2000 times, and then reads 2000 replies."""
    frontend = await trial.connect()
    await frontend.send_raw(trial.message(GET_FEATURES, Empty()) * FLOOD)
    for at in range(FLOOD):
        try:
            reply = await trial.next_reply(frontend)
        except (TimeoutError, *CLOSED):
            raise Failed(f"of {FLOOD} requests that were sent at once, {at} were answered") from None
        expect(reply.request == GET_FEATURES.request, f"reply {at} is one to request {reply.request}")


@ROBUSTNESS.should(5, "Front-end disconnect", "A front-end that says no more is one that has gone.")
async def half_closed(trial: Trial) -> None:
    """Shuts the connection down for writing only: the back-end closes it."""
    frontend = await trial.negotiate()
    frontend.say_no_more()
    try:
        await frontend.hang_up()
    except TimeoutError:
        raise Failed("a connection that was shut down for writing is kept open") from None


# --- To leave nothing behind ----------------------------------------------------------------------------


async def visit(trial: Trial, times: int) -> None:
    """Connects, has a request answered, and goes, so many times."""
    for _ in range(times):
        async with Trial(trial.subject) as other:
            await (await other.ring()).work()


@ROBUSTNESS.must(6, "Front-end disconnect", "Front-ends that come and go leave no fd behind.", LASTS)
async def no_fd_is_left(trial: Trial) -> None:
    """Counts the fds of the process while a front-end is connected, before and after 20 others have come,
    worked, and gone.
    """
    if trial.subject.is_one_shot:
        skip("it ends with its front-end")
    await visit(trial, 5)
    first = await trial.negotiate()
    before = trial.process.fds()
    first.close()
    await visit(trial, ROUNDS)
    await trial.negotiate()
    most = before + ROUNDS // 10
    await trial.until(
        lambda: trial.process.fds() <= most,
        f"it had {before} fds, and after {ROUNDS} front-ends {trial.process.fds()}",
    )


@ROBUSTNESS.should(7, "Front-end disconnect", "Front-ends that come and go leave no memory behind.", LASTS)
async def no_memory_is_left(trial: Trial) -> None:
    """Looks at the memory that is the process's own, before and after 20 front-ends have come, worked, and
    gone: it grows by 1 MiB at most.
    """
    if trial.subject.is_one_shot:
        skip("it ends with its front-end")
    await visit(trial, ROUNDS)
    before = trial.process.resident()
    await visit(trial, ROUNDS)
    grown = trial.process.resident() - before
    expect(grown <= SPARE, f"its memory has grown by {grown >> 10} KiB with {ROUNDS} front-ends")


# --- To come while another is served ----------------------------------------------------------------------


@ROBUSTNESS.must(8, "Front-end disconnect", "A second front-end does not disturb the first.", WORKS)
async def second_disturbs_nobody(trial: Trial) -> None:
    """Connects once more, says GET_FEATURES there, and goes, while a ring runs: it goes on."""
    ring = await trial.ring()
    await ring.work()
    if (second := await trial.knock()) is not None:
        with suppress(*CLOSED):
            await second.send_raw(trial.message(GET_FEATURES, Empty()))
    await ring.work(2)
    if second is not None:
        second.close()
    await ring.work(2)
    await trial.answers(ring.frontend, "a second front-end has closed the connection of the first")


@ROBUSTNESS.should(9, "Front-end disconnect", "A second front-end is not left waiting.")
async def second_hears_at_once(trial: Trial) -> None:
    """Connects once more, and sends GET_FEATURES there: it is answered, or the connection ends."""
    await trial.negotiate()
    if (second := await trial.knock()) is None:
        return
    try:
        await trial.closed(second)
    except TimeoutError:
        raise Failed("a second front-end hears nothing, neither an answer nor an end") from None


# --- To be wrong ----------------------------------------------------------------------------------------


@ROBUSTNESS.must(10, "Ring states", "Requests that come too early cost the connection at most.")
async def wrong_order(trial: Trial) -> None:
    """Starts, enables and stops rings of which nothing is known yet, in several orders, each on a connection
    of its own; a new front-end is served after each.
    """
    kick = trial.eventfd()
    os.eventfd_write(kick.fileno(), 1)
    orders: dict[str, list[Step]] = {
        "a kick fd before all else": [(SET_VRING_KICK, VringFd(0), [kick])],
        "a ring that is enabled before all else": [(SET_VRING_ENABLE, VringState(0, 1), [])],
        "a ring that is stopped twice": [(GET_VRING_BASE, VringState(0, 0), [])] * 2,
        "addresses before memory": [
            (SET_VRING_NUM, VringState(0, 64), []),
            (SET_VRING_ADDR, VringAddr(0, 0, 1 << 20, 3 << 20, 2 << 20, 0), []),
            (SET_VRING_KICK, VringFd(0), [kick]),
            (SET_VRING_ENABLE, VringState(0, 1), []),
        ],
        "a ring of size 0": [
            (SET_VRING_NUM, VringState(0, 0), []),
            (SET_VRING_KICK, VringFd(0), [kick]),
            (SET_VRING_ENABLE, VringState(0, 1), []),
        ],
        "a base of 2^32-1": [
            (SET_VRING_BASE, VringState(0, 0xFFFF_FFFF), []),
            (SET_VRING_KICK, VringFd(0), [kick]),
            (SET_VRING_ENABLE, VringState(0, 1), []),
        ],
    }
    for what, steps in orders.items():
        frontend = await trial.negotiate()
        with suppress(*CLOSED, RefusedRequest):
            for row, payload, fds in steps:
                await frontend.call(row, payload, *fds)
        await trial.answers_or_closes(frontend)
        await trial.survived(frontend, what)


@ROBUSTNESS.must(
    11, "SET_FEATURES", "Features that change while a ring runs cost the connection at most.", WORKS
)
async def features_change(trial: Trial) -> None:
    """Sends SET_FEATURES of none, and of all that are offered, while a ring runs, and has it work."""
    for what, features in (("no features", 0), ("all features", trial.subject.features)):
        ring = await trial.ring()
        await ring.work()
        with suppress(*CLOSED, RefusedRequest):
            await ring.frontend.call(SET_FEATURES, U64(features & ~mask(Feature.ACCESS_PLATFORM)))
            ring.post()
        await ring.hurt(what)
        await trial.survived(ring.frontend, f"{what} while a ring runs")


@ROBUSTNESS.must(12, "SET_VRING_KICK", "Fds of a wrong kind cost the connection at most.", WORKS)
async def wrong_fds(trial: Trial) -> None:
    """Gives a ring kick, call and err fds that are files, folders, devices, and pipes whose other end is
    closed, and has it work; each on a connection of its own. A new front-end is served after each.
    """
    kinds = wrong_kinds(trial)
    for end, what in enumerate(("a pipe that nobody writes", "a pipe that nobody reads")):
        pipe = [trial.fd(number) for number in os.pipe()]
        pipe[1 - end].close()
        kinds.append((what, pipe[end]))
    for row in (SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR):
        for what, fd in kinds:
            ring = await trial.ring()
            with suppress(*CLOSED, RefusedRequest):
                await ring.frontend.call(row, VringFd(ring.queue.index), fd)
                ring.post()
                if row is SET_VRING_KICK:  # there nobody can kick any more
                    await trial.answers_or_closes(ring.frontend)
                else:
                    await ring.hurt(what)
            await trial.survived(ring.frontend, f"{what} with {row}")


@ROBUSTNESS.must(13, "Ancillary data", "More fds than any request takes cost the connection at most.")
async def many_fds(trial: Trial) -> None:
    """Sends SET_MEM_TABLE, SET_VRING_KICK and GET_FEATURES with 9, 33 and 253 fds each, on connections of
    their own; a new front-end is served after each.
    """
    eventfd, table = trial.eventfd(), MemoryTable((trial.memory(SIZE).region,))
    for row, payload in ((SET_MEM_TABLE, table), (SET_VRING_KICK, VringFd(0)), (GET_FEATURES, Empty())):
        for count in (9, 33, MOST_FDS):
            frontend = await trial.negotiate()
            with suppress(*CLOSED):
                await frontend.send_raw(trial.message(row, payload), *[eventfd] * count)
                await frontend.receive_raw()
            await trial.survived(frontend, f"{row} with {count} fds")


@ROBUSTNESS.must(14, "Message Specification", "Noise costs the connection at most.")
async def noise(trial: Trial) -> None:
    """Sends 4096 random bytes, the same at each run, eight times, each on a connection of its own; a new
    front-end is served after each.
    """
    for seed in range(8):
        frontend = await trial.connect()
        with suppress(*CLOSED, TimeoutError):
            await frontend.send_raw(random.Random(seed).randbytes(4096))
            await frontend.taken()  # else it may hear of the next front-end first, and never read this
        await trial.survived(frontend, f"noise number {seed} in place of messages")


@ROBUSTNESS.must(15, "Message types", "A payload of nonsense costs the connection at most.")
async def nonsense(trial: Trial) -> None:
    """Sends each request from 0 to 47 with 64 bytes that are all ones, and then all zeroes, without fds, and
    asks for an ack; a new front-end is served whenever the connection was closed.
    """
    frontend = await trial.negotiate()
    for fill in (b"\xff", b"\0"):
        for number in range(48):
            what = f"request {number} with 64 bytes {fill.hex()}"
            try:
                await frontend.send_raw(raw_message(number, fill * 64, flags=VERSION | NEED_REPLY))
                ended = await trial.closed(frontend)
            except CLOSED:
                ended = True
            except TimeoutError:
                raise Failed(f"{what}: no more is answered") from None
            if ended:
                await trial.survived(frontend, what)
                frontend = await trial.negotiate()


@ROBUSTNESS.must(
    16,
    "SET_BACKEND_REQ_FD",
    "A socket for requests that nobody reads costs the connection at most.",
    Needs(protocol=(ProtocolFeature.BACKEND_REQ,), exchange=True),
)
async def requests_to_nobody(trial: Trial) -> None:
    """Gives it a socket for its requests whose other end is closed, and then has a ring work."""
    frontend = await trial.negotiate()
    ours, theirs = socket.socketpair()
    ours.close()
    with suppress(RefusedRequest), Fd(theirs.detach()) as fd:
        await frontend.call(SET_BACKEND_REQ_FD, Empty(), fd)
    with suppress(*CLOSED):
        await (await trial.ring(frontend)).hurt("a socket for requests that nobody reads")


# --- Kicks and interrupts ---------------------------------------------------------------------------------


@ROBUSTNESS.must(17, "SET_VRING_KICK", "Kicks without end do not keep it from anything else.", WORKS)
async def storm(trial: Trial) -> None:
    """Kicks 500 times with nothing to be done, and sends GET_FEATURES between the kicks: all are answered,
    and a valid request at last.
    """
    ring = await trial.ring()
    await ring.work()
    for _ in range(100):
        for _ in range(5):
            ring.kick()
        await trial.answers(ring.frontend, "kicks without end have closed the connection")
    await ring.work()


async def unheard(trial: Trial, *, blocks: bool) -> None:
    """Expects a ring to go on whose call fd is full."""
    ring, call = await trial.ring(), trial.eventfd()
    await ring.frontend.call(SET_VRING_CALL, VringFd(ring.queue.index), call)
    await trial.answers(ring.frontend, "SET_VRING_CALL closed the connection")
    with suppress(BlockingIOError):  # it was signalled when it came
        os.eventfd_read(call.fileno())
    os.eventfd_write(call.fileno(), MOST_KICKS)
    os.set_blocking(call.fileno(), blocks)
    await ring.work_unheard(4)
    await trial.answers(ring.frontend, "a call fd that is full has closed the connection")


@ROBUSTNESS.should(18, "SET_VRING_CALL", "A ring goes on when nobody takes its interrupts.", WORKS)
async def interrupts_untaken(trial: Trial) -> None:
    """Gives a ring a call fd that is an eventfd with the highest count there is, which does not block: valid
    requests are answered, and messages.
    """
    await unheard(trial, blocks=False)


@ROBUSTNESS.advice(19, "SET_VRING_CALL", "Nor does a call fd keep it that blocks.", WORKS)
async def interrupts_that_block(trial: Trial) -> None:
    """As ROB-18, with a call fd that blocks whoever signals it."""
    await unheard(trial, blocks=True)
