"""The states of rings, and what both of their formats have to keep. Each check is done with each format.

**What starts a ring.** Until QEMU 11, the specification said that a ring is started by its first kick. Now
it says that SET_VRING_KICK starts it. Back-ends should not wait for a kick then, and front-ends should give
one. So a ring must be served if it is kicked after its start, and should be if it is not.

**What a disabled ring is.** It is processed "without causing any side effects". For a network card that is
to drop what is sent. For other devices nobody knows what it may be; most do not serve such a ring, and then
nothing is lost when it is enabled again. That nothing is served meanwhile is a should; that the ring goes on
afterwards is a must.

**What stops a ring.** GET_VRING_BASE, which is answered when the requests that the device has taken are done.
They can be recorded instead, if GET_VRING_BASE_INFLIGHT was negotiated and there is an inflight area: there
is none here.

**Front-ends that make no sense.** A ring of no possible size, or at no possible address, is the fault of a
front-end, which is no attacker. That it is refused is a should.
"""

from vhostd.conformance.check import Group, Needs
from vhostd.conformance.each_format import EachFormat
from vhostd.conformance.ring import Ring
from vhostd.conformance.trial import CLOSED, Trial
from vhostd.conformance.verdict import Failed, expect, skip
from vhostd.errors import RefusedRequest
from vhostd.vhost_user.messages import (
    GET_VRING_BASE,
    SET_VRING_ADDR,
    SET_VRING_CALL,
    SET_VRING_ERR,
    SET_VRING_KICK,
    SET_VRING_NUM,
    VringFd,
    VringState,
)
from vhostd.virtio.vocabulary import Feature

RINGS = Group("RING", "Rings")  # goes on in ring_requests.py

WORKS = Needs(exchange=True)
BIT_30 = Needs(exchange=True, features=(Feature.PROTOCOL_FEATURES,))
UNDER_WAY = 16  # requests, for which any ring has room: QEMU gives a sound card one of 64 descriptors
SMALL_MEMORY = 1 << 20


# --- Started and stopped ------------------------------------------------------------------------------------


@RINGS.must(1, "Ring states", "A ring that is started and enabled is served.", WORKS)
@EachFormat
async def served(trial: Trial) -> None:
    """Starts a ring, and sends three requests, one after the other."""
    await (await trial.ring()).work(3)


@RINGS.must(2, "Ring states", "What was made available before the start is served after it.", WORKS)
@EachFormat
async def waiting_requests(trial: Trial) -> None:
    """Makes a request available, starts the ring, and kicks."""
    ring = await trial.ring(started=False)
    ring.post()
    await ring.start()
    await ring.seen()


@RINGS.should(3, "Ring states", "SET_VRING_KICK starts a ring: no kick is needed for what is there.", WORKS)
@EachFormat
async def no_first_kick(trial: Trial) -> None:
    """Makes a request available, and starts the ring; nobody kicks."""
    ring = await trial.ring(started=False)
    ring.post()
    await ring.frontend.start_again(ring.queue)
    await ring.seen()


@RINGS.must(4, "SET_VRING_KICK", "A ring can be set up in the order of any front-end.", WORKS)
@EachFormat
async def order_of_the_set_up(trial: Trial) -> None:
    """Gives the call and err fds first of all, then size, base and addresses, and at last the kick fd, as
    QEMU does.
    """
    ring = await trial.ring(started=False)
    frontend, queue = ring.frontend, ring.queue
    await frontend.call(SET_VRING_CALL, VringFd(queue.index), queue.call_fd)
    await frontend.call(SET_VRING_ERR, VringFd(queue.index), queue.err_fd)
    await frontend.set_up(queue)
    await frontend.call(SET_VRING_KICK, VringFd(queue.index), queue.kick_fd)
    await ring.enable(on=True)
    ring.kick()
    await ring.work(2)


@RINGS.must(5, "GET_VRING_BASE", "A ring that stops tells where it has stopped.", WORKS)
@EachFormat
async def base_is_told(trial: Trial) -> None:
    """Sends three requests and stops the ring: the base is behind them, of a packed ring both halves."""
    ring = await trial.ring()
    await ring.work(3)
    base = await ring.stop()
    expect(
        base == ring.reached,
        f"after 3 requests it says {ring.spell(base)}, and not {ring.spell(ring.reached)}",
    )


@RINGS.must(6, "SET_VRING_BASE", "A ring goes on at the base that it is given.", WORKS)
@EachFormat
async def goes_on(trial: Trial) -> None:
    """Stops the ring and starts it again at the base that was told, three times, with requests in between:
    each is used once.
    """
    ring = await trial.ring()
    for _ in range(3):
        await ring.work(3)
        await ring.start(base=await ring.stop())
    await ring.work(3)
    await ring.stop()
    expect(ring.queue.poll() is None, "it has used a chain once more after it was started again")


@RINGS.must(7, "Ring states", "A stopped ring is not processed, and nothing is written or told.", WORKS)
@EachFormat
async def stopped(trial: Trial) -> None:
    """Stops the ring, makes a request available, and kicks: no byte of memory changes, and there is no
    interrupt. When the ring is started again, the request is answered.
    """
    frontend = await trial.negotiate()
    memory = trial.memory(SMALL_MEMORY)
    await frontend.share(memory)
    ring = await trial.ring(frontend, memory)
    await ring.work(2)
    base = await ring.stop()
    ring.post()
    ring.interrupts()
    before = content(ring)
    await ring.tempt()
    expect(content(ring) == before, "it has written to memory after the ring was stopped")
    expect(not ring.interrupts(), "it has interrupted the driver after the ring was stopped")
    await ring.start(base=base)
    await ring.seen()


@RINGS.must(8, "GET_VRING_BASE", "What the device has taken is done when it says that it has stopped.", WORKS)
@EachFormat
async def in_flight(trial: Trial) -> None:
    """Makes 16 requests available, kicks, and stops the ring at once: all that lie before the base are used.
    When the ring is started again there, so are the others.
    """
    ring = await trial.ring()
    for _ in range(UNDER_WAY):
        ring.post()
    ring.kick()
    base = await ring.stop()
    done = 0
    while ring.queue.poll() is not None:
        done += 1
    expect(
        base == ring.reached,
        f"it has stopped at {ring.spell(base)}, and has used what lies before {ring.spell(ring.reached)}",
    )
    await ring.start(base=base)
    for _ in range(UNDER_WAY - done):
        await ring.seen()


@RINGS.should(9, "GET_VRING_BASE", "It is answered for a ring that was never started, too.")
async def never_started(trial: Trial) -> None:
    """Sends GET_VRING_BASE twice, for a ring of which nothing was said."""
    frontend = await trial.negotiate()
    for _ in range(2):
        try:
            await frontend.call(GET_VRING_BASE, VringState(0, 0))
        except CLOSED:
            raise Failed("GET_VRING_BASE of a ring that was never started closed the connection") from None


@RINGS.should(10, "Ring states", "A stopped ring is started again by SET_VRING_KICK.", WORKS)
@EachFormat
async def fds_alone(trial: Trial) -> None:
    """Stops a ring, and gives its call and kick fds once more, and nothing else: it goes on where it was."""
    ring = await trial.ring()
    frontend, queue = ring.frontend, ring.queue
    await ring.work(3)
    await ring.stop()
    await frontend.call(SET_VRING_CALL, VringFd(queue.index), queue.call_fd)
    await frontend.call(SET_VRING_KICK, VringFd(queue.index), queue.kick_fd)
    ring.kick()
    await ring.work_unheard(3)


@RINGS.must(11, "Ring states", "A stopped ring can be set up anew, elsewhere and of another size.", WORKS)
@EachFormat
async def set_up_anew(trial: Trial) -> None:
    """Moves the ring to other memory, with sizes that any device takes: 16, 32, and 64."""
    ring = await trial.ring()
    for size in (16, 32, 64):
        await ring.work(2)
        await ring.move(size)
    await ring.work(2)


@RINGS.must(12, "Ring states", "A ring does not depend on whether the others run.", WORKS)
@EachFormat
async def alone(trial: Trial) -> None:
    """Stops and starts again the other rings that the device's type has, while one works."""
    ring = await trial.ring()
    others = [queue for queue in ring.queues if queue is not ring.queue]
    if not others:
        skip("its requests need one ring only")
    for other in others:
        await ring.work(2)
        base = await ring.frontend.stop(other)
        await ring.work(2)
        await ring.start(other, base=base)
    await ring.work(2)


# --- Enabled and disabled -----------------------------------------------------------------------------------


@RINGS.should(13, "Ring states", "A ring is disabled at first.", BIT_30)
@EachFormat
async def disabled_at_first(trial: Trial) -> None:
    """Starts a ring and does not enable it, and kicks: it is not served. Then it is enabled, and is."""
    skip_network(trial)
    ring = await trial.ring(started=False)
    frontend, queue = ring.frontend, ring.queue
    await frontend.set_up(queue)
    await frontend.call(SET_VRING_CALL, VringFd(queue.index), queue.call_fd)
    await frontend.call(SET_VRING_KICK, VringFd(queue.index), queue.kick_fd)
    ring.post()
    await ring.tempt()
    expect(queue.poll() is None, "a ring was served that was never enabled")
    await ring.enable(on=True)
    ring.kick()
    await ring.seen()


@RINGS.should(14, "Ring states", "A disabled ring is not served.", BIT_30)
@EachFormat
async def disabled(trial: Trial) -> None:
    """Disables the ring, makes a request available, and kicks: it is not used."""
    skip_network(trial)
    ring = await trial.ring()
    await ring.work()
    await ring.enable(on=False)
    ring.post()
    await ring.tempt()
    expect(ring.queue.poll() is None, "a request was served while the ring was disabled")


@RINGS.must(15, "Ring states", "A ring that is enabled again goes on.", BIT_30)
@EachFormat
async def enabled_again(trial: Trial) -> None:
    """Disables the ring, makes a request available, and enables the ring again: that one and the next are
    used.
    """
    ring = await trial.ring()
    await ring.work()
    await ring.enable(on=False)
    ring.post()
    await ring.enable(on=True)
    ring.kick()
    await ring.seen()
    await ring.work()


@RINGS.should(16, "Ring states", "A ring may be enabled before it is started.", BIT_30)
@EachFormat
async def enabled_first(trial: Trial) -> None:
    """Enables a ring, sets it up and starts it."""
    ring = await trial.ring(started=False)
    frontend, queue = ring.frontend, ring.queue
    await ring.enable(on=True)
    await frontend.set_up(queue)
    await frontend.call(SET_VRING_CALL, VringFd(queue.index), queue.call_fd)
    await frontend.call(SET_VRING_KICK, VringFd(queue.index), queue.kick_fd)
    ring.kick()
    await ring.work_unheard(2)


@RINGS.should(17, "Ring states", "A ring stays enabled while it is stopped.", BIT_30)
@EachFormat
async def stays_enabled(trial: Trial) -> None:
    """Stops a ring, and starts it again without a word of enabling it."""
    ring = await trial.ring()
    await ring.work()
    base = await ring.stop()
    frontend, queue = ring.frontend, ring.queue
    await frontend.set_up(queue, base)
    await frontend.call(SET_VRING_CALL, VringFd(queue.index), queue.call_fd)
    await frontend.call(SET_VRING_KICK, VringFd(queue.index), queue.kick_fd)
    ring.kick()
    await ring.work_unheard(2)


@RINGS.must(18, "GET_VRING_BASE", "A disabled ring can be stopped, and loses nothing.", BIT_30)
@EachFormat
async def disabled_and_stopped(trial: Trial) -> None:
    """Disables the ring, makes a request available, and stops the ring, which is answered. When it is started
    and enabled again at the base that was told, and the request was not used yet, it is now.
    """
    ring = await trial.ring()
    await ring.work()
    await ring.enable(on=False)
    ring.post()
    base = await ring.stop()
    used = ring.queue.poll() is not None
    await ring.start(base=base)
    if not used:
        await ring.seen()
    await ring.work()


# --- On the fly ---------------------------------------------------------------------------------------------


@RINGS.must(19, "Ring states", "Addresses can be set while the ring runs, as when logging begins.", WORKS)
@EachFormat
async def address_on_the_fly(trial: Trial) -> None:
    """Sends SET_VRING_ADDR with the same addresses while the ring runs, and goes on."""
    ring = await trial.ring()
    for _ in range(3):
        await ring.work(2)
        await ring.frontend.call(SET_VRING_ADDR, ring.frontend.address(ring.queue))
    await ring.work(2)


@RINGS.must(20, "SET_VRING_NUM", "Another size for a ring that runs costs the connection at most.", WORKS)
@EachFormat
async def size_on_the_fly(trial: Trial) -> None:
    """Sends SET_VRING_NUM with half of the size while the ring runs. If that does not end the connection, the
    ring can be stopped, and works when it is set up again.
    """
    ring = await trial.ring()
    await ring.work(2)
    try:
        await ring.frontend.call(SET_VRING_NUM, VringState(ring.queue.index, ring.queue.size // 2))
    except RefusedRequest:
        pass
    except CLOSED:
        return
    await ring.move(64)
    await ring.work(2)


def content(ring: Ring) -> bytes:
    """All of the guest's memory."""
    return ring.memory.map.read(ring.memory.guest_addr, ring.memory.size)


def skip_network(trial: Trial) -> None:
    """Skips a check that wants no ring to be served which is disabled."""
    if trial.subject.kind == "net":
        skip("a network card processes a disabled ring, and drops what is sent")
