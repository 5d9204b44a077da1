"""How the driver and the device tell each other, and when they need not (virtio 1.3, 2.7.7, 2.7.10, 2.8.10).

**An interrupt too many** is no fault: drivers must handle it. That one is not sent when none is wanted is a
should. To see that none was sent, a check stops the ring: after that nothing is told any more.

**An interrupt too few** hangs a guest. So each of those is a must.

**What starts with a call fd.** Some back-ends signal a new call fd at once, since the one before may have
been lost with a front-end. That is not asked for anywhere; it is an advice.

**Broken rings.** The err fd is to be signalled "when error occurs". What an error is, is not said. Here it is
a chain without an end, which no device can serve.
"""

import os

from vhostd.conformance.check import Group, Needs
from vhostd.conformance.each_format import EachFormat
from vhostd.conformance.ring import Ring
from vhostd.conformance.trial import CLOSED, Trial
from vhostd.conformance.verdict import Failed, expect
from vhostd.errors import DeviceError, GuestError
from vhostd.frontend import BackendRequests
from vhostd.ring.driver import NEXT
from vhostd.vhost_user.messages import (
    BACKEND_VRING_CALL,
    BACKEND_VRING_ERR,
    SET_VRING_CALL,
    SET_VRING_ERR,
    SET_VRING_KICK,
    VRING_KICK,
    ProtocolFeature,
    VringFd,
    VringState,
)
from vhostd.virtio.vocabulary import Feature, mask
from vhostd.wire.calls import answer
from vhostd.wire.rows import Row

NOTIFICATION = Group("NOTE", "Notifications")

WORKS = Needs(exchange=True)
EVENTS = Needs(exchange=True, features=(Feature.EVENT_IDX,))
IN_BAND = Needs(
    exchange=True,
    protocol=(
        ProtocolFeature.INBAND_NOTIFICATIONS,
        ProtocolFeature.BACKEND_REQ,
        ProtocolFeature.REPLY_ACK,
    ),
)
NO_FD = 0x100  # in the payload of a message that may come with an fd
NO_INTERRUPT = 1
DISABLE, AT_DESCRIPTOR = 1, 2  # in a packed ring's event suppression
WRAP = 0x8000  # a wrap counter, in a position of a packed ring
ROUNDS = 20
TOLD = (BACKEND_VRING_CALL, BACKEND_VRING_ERR)


# --- Interrupts ---------------------------------------------------------------------------------------------


@NOTIFICATION.must(
    1, "virtio 2.7.7.2", "The driver is interrupted when a chain was used, if it wants that.", WORKS
)
@EachFormat
async def interrupted(trial: Trial) -> None:
    """Without EVENT_IDX, sends requests one by one, each of which is followed by an interrupt."""
    ring = await _without_events(trial)
    for _ in range(ROUNDS):
        await ring.quiet()
        ring.post()
        ring.kick()
        await ring.interrupted("a chain was used without an interrupt")
        await ring.seen()


@NOTIFICATION.should(2, "virtio 2.7.7.2", "There is no interrupt while the driver wants none.", WORKS)
@EachFormat
async def not_interrupted(trial: Trial) -> None:
    """Without EVENT_IDX, asks for no interrupts, sends a request, and stops the ring: there was none."""
    ring = await _without_events(trial)
    await ring.quiet()
    ring.queue.driver.disarm()
    await ring.work_unheard()
    await ring.stop()
    expect(not ring.interrupts(), "it has interrupted a driver that had asked for no interrupts")


@NOTIFICATION.must(
    3, "virtio 2.7.7.2", "With EVENT_IDX there is an interrupt for the chain that is asked for.", EVENTS
)
@EachFormat
async def at_the_event(trial: Trial) -> None:
    """Asks for an interrupt when the third chain is used, and sends three requests one by one; and so on,
    more than once around the ring.
    """
    ring = await trial.ring(size=16)
    for _ in range(ROUNDS):
        await ring.quiet()
        _ask_at(ring, 3)
        await ring.work_unheard(2)
        ring.post()
        ring.kick()
        await ring.interrupted("the chain at the event was used without an interrupt")
        await ring.seen()


@NOTIFICATION.should(4, "virtio 2.7.7.2", "With EVENT_IDX there is no interrupt before that.", EVENTS)
@EachFormat
async def not_before_the_event(trial: Trial) -> None:
    """Waits for a first interrupt, asks for one when the third chain from there is used, sends two requests,
    and stops the ring.
    """
    ring = await trial.ring()
    await ring.quiet()
    _ask_at(ring, 1)
    await ring.work_unheard()
    await ring.interrupted("the chain at the event was used without an interrupt")
    _ask_at(ring, 3)
    await ring.work_unheard(2)
    await ring.stop()
    expect(not ring.interrupts(), "it has interrupted the driver before the chain that it was to tell of")


@NOTIFICATION.must(
    5, "virtio 2.7.7.2", "With EVENT_IDX the flags of the available ring mean nothing.", EVENTS
)
async def flags_ignored(trial: Trial) -> None:
    """Sets NO_INTERRUPT in a split ring, asks for an interrupt at the next chain, and sends a request."""
    ring = await trial.ring(packed=False)
    await ring.quiet()
    _ask_at(ring, 1)
    ring.memory.map.write(ring.queue.driver.avail_addr, NO_INTERRUPT.to_bytes(2, "little"))
    ring.post()
    ring.kick()
    await ring.interrupted("NO_INTERRUPT counted, though EVENT_IDX was negotiated")


@NOTIFICATION.must(6, "virtio 2.7.7.2", "Without EVENT_IDX the used event means nothing.", WORKS)
async def event_ignored(trial: Trial) -> None:
    """Writes a used event that is far away into a split ring, and sends two requests: each is followed by an
    interrupt.
    """
    ring = await _without_events(trial, packed=False)
    ring.queue.driver.set_used_event(1000)
    for _ in range(2):
        await ring.quiet()
        ring.post()
        ring.kick()
        await ring.interrupted("the used event counted, though EVENT_IDX was not negotiated")
        await ring.seen()


# --- Kicks --------------------------------------------------------------------------------------------------


@NOTIFICATION.must(7, "virtio 2.7.10.2", "The device's wish for kicks is one that there is.", WORKS)
@EachFormat
async def wishes(trial: Trial) -> None:
    """Sends requests, and looks at the device's flags after each: with EVENT_IDX those of a split ring are 0;
    else they are 0 or 1.
    """
    ring = await trial.ring()
    most = _most_flags(ring, has_events=trial.subject.has(Feature.EVENT_IDX))
    for _ in range(ROUNDS):
        await ring.work()
        flags = _device_flags(ring)
        expect(flags <= most, f"its flags for kicks are {flags:#x}, and {most} at most")


@NOTIFICATION.must(8, "virtio 2.7.10", "A driver that heeds the device's flags loses no request.", WORKS)
@EachFormat
async def flags_heeded(trial: Trial) -> None:
    """Without EVENT_IDX, sends requests in bunches of one to five, and kicks only where it is asked to."""
    await _send_bunches(await _without_events(trial))


@NOTIFICATION.must(9, "virtio 2.7.10", "A driver that heeds the device's event loses no request.", EVENTS)
@EachFormat
async def events_heeded(trial: Trial) -> None:
    """With EVENT_IDX, sends requests in bunches of one to five, and kicks only where it is asked to."""
    await _send_bunches(await trial.ring())


@NOTIFICATION.must(10, "virtio 2.7.10", "No kick is lost while the device works.", WORKS)
@EachFormat
async def kicks_meanwhile(trial: Trial) -> None:
    """Makes 16 requests available one by one, each with a kick, and waits for answers after the last."""
    ring = await trial.ring()
    for _ in range(16):
        ring.post()
        ring.queue.kick()
    for _ in range(16):
        await ring.seen()


@NOTIFICATION.must(11, "virtio 2.7.10.2", "A kick without a request does no harm.", WORKS)
@EachFormat
async def spurious_kicks(trial: Trial) -> None:
    """Kicks an empty ring many times, and a ring that works twice for each request."""
    ring = await trial.ring()
    await ring.tempt()
    expect(ring.queue.poll() is None, "it has used a chain that it did not have")
    for _ in range(ROUNDS):
        ring.kick()
        await ring.work()
        ring.kick()


@NOTIFICATION.should(12, "SET_VRING_KICK", "A ring without a kick fd is polled.", WORKS)
@EachFormat
async def polled(trial: Trial) -> None:
    """Starts a ring with bit 8 set and no kick fd, and makes requests available."""
    ring = await _started(trial, kick=False)
    for _ in range(3):
        ring.post()
        await ring.seen()


@NOTIFICATION.should(13, "SET_VRING_KICK", "The kick fd can be replaced while the ring runs.", WORKS)
@EachFormat
async def other_kick_fd(trial: Trial) -> None:
    """Gives another kick fd, kicks by that, and so twice."""
    ring = await trial.ring()
    for _ in range(2):
        await ring.work()
        kick = trial.eventfd()
        await ring.frontend.call(SET_VRING_KICK, VringFd(ring.queue.index), kick)
        ring.post()
        os.eventfd_write(kick.fileno(), 1)
        await ring.seen()
        await ring.frontend.call(SET_VRING_KICK, VringFd(ring.queue.index), ring.queue.kick_fd)


# --- Call and err fds ---------------------------------------------------------------------------------------


@NOTIFICATION.should(14, "SET_VRING_CALL", "A ring without a call fd is served.", WORKS)
@EachFormat
async def no_call_fd(trial: Trial) -> None:
    """Starts a ring with bit 8 set and no call fd, looks for the answers in memory, and gives a call fd then:
    it is interrupted.
    """
    ring = await _started(trial, call=False)
    await ring.work_unheard(3)
    await ring.frontend.call(SET_VRING_CALL, VringFd(ring.queue.index), ring.queue.call_fd)
    await ring.quiet()
    ring.queue.driver.arm()
    ring.post()
    ring.kick()
    await ring.interrupted("there was no interrupt by a call fd that was given while the ring ran")


@NOTIFICATION.must(15, "SET_VRING_CALL", "The call fd can be replaced while the ring runs.", WORKS)
@EachFormat
async def other_call_fd(trial: Trial) -> None:
    """Gives another call fd, as QEMU does for each change of an interrupt's mask: interrupts come by that."""
    ring = await trial.ring()
    for _ in range(3):
        await ring.work()
        call = trial.eventfd()
        await ring.frontend.call(SET_VRING_CALL, VringFd(ring.queue.index), call)
        await ring.quiet()
        ring.interrupts(call)
        ring.queue.driver.arm()
        ring.post()
        ring.kick()
        await ring.interrupted("there was no interrupt by the new call fd", call)
        await ring.seen()
        await ring.frontend.call(SET_VRING_CALL, VringFd(ring.queue.index), ring.queue.call_fd)


@NOTIFICATION.should(16, "SET_VRING_CALL", "A call fd that was replaced is not signalled any more.", WORKS)
@EachFormat
async def old_call_fd(trial: Trial) -> None:
    """Gives another call fd, sends a request, and stops the ring: the one before was not signalled."""
    ring = await trial.ring()
    await ring.frontend.call(SET_VRING_CALL, VringFd(ring.queue.index), trial.eventfd())
    await ring.quiet()
    ring.queue.driver.arm()
    await ring.work_unheard()
    await ring.stop()
    expect(not ring.interrupts(), "a call fd was signalled after it was replaced")


@NOTIFICATION.advice(17, "SET_VRING_CALL", "A new call fd is signalled at once.", WORKS)
@EachFormat
async def signalled_at_once(trial: Trial) -> None:
    """Has a request served without a call fd, and then gives one."""
    ring = await _started(trial, call=False)
    ring.queue.driver.arm()
    await ring.work_unheard()
    await ring.frontend.call(SET_VRING_CALL, VringFd(ring.queue.index), ring.queue.call_fd)
    await ring.frontend.call(SET_VRING_ERR, VringFd(ring.queue.index), ring.queue.err_fd)
    expect(ring.interrupts(), "it was not signalled, though an interrupt before it may have been lost")


@NOTIFICATION.should(18, "SET_VRING_ERR", "The err fd is signalled when a ring is broken.", WORKS)
@EachFormat
async def broken(trial: Trial) -> None:
    """Makes a chain available that has no end."""
    ring = await trial.ring()
    _break(ring)
    try:
        await ring.queue.used()
    except GuestError:
        return
    except DeviceError as error:
        raise Failed(f"a chain without an end was used: {error}") from None
    except TimeoutError:
        raise Failed("a chain without an end did not make it signal the err fd") from None
    except CLOSED:
        raise Failed("a chain without an end made it close the connection, not signal the err fd") from None


# --- In band ------------------------------------------------------------------------------------------------


@NOTIFICATION.must(
    19, "VRING_KICK", "With INBAND_NOTIFICATIONS a message starts a ring, and kicks it.", IN_BAND
)
@EachFormat
async def kicked_by_message(trial: Trial) -> None:
    """Sets a ring up, gives no kick fd, and sends VRING_KICK after each request."""
    ring, _ = await _in_band(trial)
    for _ in range(3):
        ring.post()
        await _kick_by_message(ring)
        await ring.seen()


@NOTIFICATION.must(
    20, "BACKEND_VRING_CALL", "Without a call fd the driver is interrupted by messages.", IN_BAND
)
@EachFormat
async def called_by_message(trial: Trial) -> None:
    """Sends requests by VRING_KICK, and waits for a VRING_CALL of that ring for each."""
    ring, requests = await _in_band(trial)
    for _ in range(3):
        ring.queue.driver.arm()
        ring.post()
        await _kick_by_message(ring)
        await _told(requests, ring, BACKEND_VRING_CALL, "a chain was used without a message")
        await ring.seen()


@NOTIFICATION.should(
    21, "BACKEND_VRING_ERR", "Without an err fd a broken ring is told of by a message.", IN_BAND
)
@EachFormat
async def err_by_message(trial: Trial) -> None:
    """Makes a chain available that has no end, and waits for VRING_ERR of that ring."""
    ring, requests = await _in_band(trial)
    _break(ring)
    await _kick_by_message(ring)
    await _told(requests, ring, BACKEND_VRING_ERR, "a ring was broken without a message")


@NOTIFICATION.must(
    22, "SET_VRING_KICK", "With INBAND_NOTIFICATIONS there may be eventfds all the same.", IN_BAND
)
@EachFormat
async def eventfds_in_band(trial: Trial) -> None:
    """Starts a ring with a kick and a call fd, and uses those."""
    frontend = await trial.negotiate(protocol_features=~mask(ProtocolFeature.XEN_MMAP))
    await (await trial.ring(frontend)).work(3)


# --- How it is done -----------------------------------------------------------------------------------------


async def _without_events(trial: Trial, *, packed: bool | None = None) -> Ring:
    """A ring without EVENT_IDX."""
    frontend = await trial.negotiate(packed=packed, without=(Feature.EVENT_IDX,))
    return await trial.ring(frontend, packed=packed)


async def _started(trial: Trial, *, kick: bool = True, call: bool = True) -> Ring:
    """A ring that was started without one of its fds."""
    ring = await trial.ring(started=False)
    frontend, queue = ring.frontend, ring.queue
    await frontend.set_up(queue)
    for row, fd, is_given in ((SET_VRING_CALL, queue.call_fd, call), (SET_VRING_KICK, queue.kick_fd, kick)):
        if is_given:
            await frontend.call(row, VringFd(queue.index), fd)
        else:
            await frontend.call(row, VringFd(queue.index | NO_FD))
    await ring.enable(on=True)
    ring.kick()
    return ring


async def _in_band(trial: Trial) -> tuple[Ring, BackendRequests]:
    """A ring that was set up and given no fds, and the back-end's messages."""
    frontend = await trial.negotiate(protocol_features=~mask(ProtocolFeature.XEN_MMAP))
    requests = await trial.requests(frontend, *(answer(row, lambda _: None) for row in TOLD))
    ring = await trial.ring(frontend, started=False)
    await frontend.set_up(ring.queue)
    await ring.enable(on=True)
    return ring, requests


async def _kick_by_message(ring: Ring) -> None:
    await ring.frontend.call(VRING_KICK, VringState(ring.queue.index, 0))


async def _told(requests: BackendRequests, ring: Ring, row: Row[VringState, None], otherwise: str) -> None:
    """Waits for such a message about the ring."""
    try:
        while (await requests.told(row)).index != ring.queue.index:
            pass
    except TimeoutError:
        raise Failed(otherwise) from None


async def _send_bunches(ring: Ring) -> None:
    """Sends requests in bunches, and kicks only if the device wants to be kicked."""
    for bunch in range(ROUNDS):
        count = bunch % 5 + 1
        for _ in range(count):
            ring.post()
        ring.queue.kick()
        for _ in range(count):
            await ring.seen()


def _ask_at(ring: Ring, count: int) -> None:
    """Asks for an interrupt when so many more valid requests have been used (EVENT_IDX)."""
    driver, before = ring.queue.driver, count - 1
    if not ring.is_packed:
        driver.set_used_event(driver.used_index + before & 0xFFFF)
        return
    wrap, at = driver.used_at & WRAP, driver.used_at & ~WRAP
    at += before * ring.descriptors
    driver.suppress(wrap | at if at < driver.size else (wrap ^ WRAP) | at - driver.size, AT_DESCRIPTOR)


def _device_flags(ring: Ring) -> int:
    """What the device says of its wish for kicks."""
    flags: int = ring.queue.driver.device_event >> 16 if ring.is_packed else ring.queue.driver.used_flags
    return flags


def _most_flags(ring: Ring, *, has_events: bool) -> int:
    """The highest value of these flags."""
    if ring.is_packed:
        return AT_DESCRIPTOR if has_events else DISABLE
    return 0 if has_events else DISABLE


def _break(ring: Ring) -> None:
    """Makes a chain available that has no end, and kicks."""
    addr, driver = ring.memory.allocate(16), ring.queue.driver
    if ring.is_packed:
        driver.offer([(addr, 16, 0, NEXT)] * driver.size)
    else:
        driver.descriptor(0, addr, 16, NEXT, 0)
        driver.offer(0)
        driver.publish()
    ring.kick()
