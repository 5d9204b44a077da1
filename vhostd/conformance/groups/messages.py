"""How messages are framed, and what becomes of those that make no sense.

**What is too long is no fault.** Front-ends in use send the whole of a buffer where the specification has
a smaller payload. So nothing is checked here about bytes after a payload's end.

**Unknown requests.** The specification says that with REPLY_ACK a back-end answers a request that it
cannot do with a value that is not 0. Whether a back-end without REPLY_ACK ignores an unknown request, or
closes the connection, is not said; either is accepted.

**A message in pieces.** The socket is a stream, which may cut a message anywhere. The front-ends in use send
each by one call, and it arrives whole. libvhost-user relies on that, so the clause is no must.
"""

import os
from contextlib import suppress

from vhostd.conformance.check import Group, Needs
from vhostd.conformance.trial import CLOSED, Trial
from vhostd.conformance.verdict import Failed, expect, skip
from vhostd.errors import RefusedRequest
from vhostd.frontend import Frontend
from vhostd.vhost_user.messages import (
    GET_FEATURES,
    GET_PROTOCOL_FEATURES,
    SET_FEATURES,
    SET_OWNER,
    SET_VRING_BASE,
    SET_VRING_CALL,
    SET_VRING_ENABLE,
    SET_VRING_KICK,
    SET_VRING_NUM,
    ProtocolFeature,
    VringFd,
    VringState,
)
from vhostd.virtio.vocabulary import Feature
from vhostd.wire.framing import HEADER, NEED_REPLY, REPLY, VERSION
from vhostd.wire.rows import U64, Empty

MESSAGES = Group("MSG", "Messages")

WITH_ACKS = Needs(features=(Feature.PROTOCOL_FEATURES,), protocol=(ProtocolFeature.REPLY_ACK,))
UNKNOWN = 1000  # no request has this number


@MESSAGES.must(1, "Message Specification: Header", "A reply has version 1 and the reply flag, and no other.")
async def header_of_a_reply(trial: Trial) -> None:
    """Sends GET_FEATURES and looks at the reply as bytes."""
    frontend = await trial.connect()
    await frontend.send_raw(trial.message(GET_FEATURES, Empty()))
    reply = await _bytes(frontend, HEADER.size + 8)
    expect(len(reply) == HEADER.size + 8, f"the reply has {len(reply)} bytes, not 20")
    request, flags, size = HEADER.unpack_from(reply)
    expect(request == GET_FEATURES.request, f"the reply is one to request {request}")
    expect(size == 8, f"the reply's header says {size} bytes, not 8")
    expect(flags & 3 == VERSION, f"the reply's version is {flags & 3}, not 1")
    expect(flags & REPLY, "the reply lacks the reply flag")
    expect(not flags & ~(3 | REPLY), f"the reply has more flags: {flags:#x}")


async def _bytes(frontend: Frontend, size: int) -> bytes:
    """So many bytes of the back-end, which may send them in pieces; fewer if no more come."""
    data = b""
    with suppress(TimeoutError):
        while len(data) < size and (piece := (await frontend.receive_raw()).data):
            data += piece
    return data


@MESSAGES.should(2, "Message Specification", "A message may come in pieces.")
async def dribbled(trial: Trial) -> None:
    """Sends GET_FEATURES byte by byte, each when the one before was read."""
    frontend = await trial.connect()
    for byte in trial.message(GET_FEATURES, Empty()):
        await frontend.send_raw(bytes([byte]))
        await frontend.taken()
    reply = await trial.next_reply(frontend)
    expect(reply.request == GET_FEATURES.request, f"the reply is one to request {reply.request}")


@MESSAGES.must(
    3, "Message Specification", "Messages may come glued together, and are answered in their order."
)
async def glued(trial: Trial) -> None:
    """Sends GET_FEATURES, SET_OWNER and GET_FEATURES in one packet: two replies come."""
    frontend = await trial.connect()
    question = trial.message(GET_FEATURES, Empty())
    await frontend.send_raw(question + trial.message(SET_OWNER, Empty()) + question)
    for _ in range(2):
        reply = await trial.next_reply(frontend)
        expect(reply.request == GET_FEATURES.request, f"the reply is one to request {reply.request}")


@MESSAGES.should(4, "Message Specification: Header", "A version other than 1 is not served.")
async def other_version(trial: Trial) -> None:
    """Sends GET_FEATURES of version 2: there is no reply, or the connection ends."""
    frontend = await trial.connect()
    await frontend.send_raw(trial.message(GET_FEATURES, Empty(), flags=2))
    try:
        reply = await trial.reply_to(frontend, GET_PROTOCOL_FEATURES, Empty())
    except CLOSED:
        return
    expect(reply.request != GET_FEATURES.request, "a request of version 2 was answered")


@MESSAGES.must(
    5, "Message Specification: Header", "A payload that is said to be huge costs the connection at most."
)
async def huge_payload(trial: Trial) -> None:
    """Sends a header that says 4 GiB less one byte; a new front-end is served afterwards."""
    frontend = await trial.connect()
    await frontend.send_raw(trial.message(SET_FEATURES, U64(0), size=0xFFFF_FFFF))
    await frontend.taken()
    frontend.close()


@MESSAGES.must(
    6, "Message Specification", "A connection that ends in the middle of a message costs nothing else."
)
async def cut(trial: Trial) -> None:
    """Sends six beginnings of SET_FEATURES, each on a connection of its own; a new front-end is served."""
    whole = trial.message(SET_FEATURES, U64(0))
    for size in (1, 4, 11, 12, 13, 19) if not trial.subject.is_one_shot else (13,):
        frontend = await trial.connect()
        await frontend.send_raw(whole[:size])
        await frontend.taken()
        frontend.close()


@MESSAGES.should(
    7, "Message Specification", "A payload that is too short is not taken for a whole one.", WITH_ACKS
)
async def short_payload(trial: Trial) -> None:
    """Sends SET_VRING_BASE with half of its payload, and asks for an ack: it is refused, or the connection
    ends.
    """
    frontend = await trial.negotiate()
    payload = VringState(0, 0).pack()[:4]
    await frontend.send_raw(HEADER.pack(SET_VRING_BASE.request, VERSION | NEED_REPLY, len(payload)) + payload)
    try:
        reply = await trial.next_reply(frontend)
    except CLOSED:
        return
    expect(reply.payload != U64(0).pack(), "a payload of 4 bytes in place of 8 was acked as well done")


@MESSAGES.must(
    8, "VHOST_USER_PROTOCOL_F_REPLY_ACK", "An unknown request is refused, if an ack is asked for.", WITH_ACKS
)
async def unknown_is_refused(trial: Trial) -> None:
    """Sends request 1000 with the need_reply flag: the ack is not 0, or the connection ends."""
    frontend = await trial.negotiate()
    await frontend.send_raw(HEADER.pack(UNKNOWN, VERSION | NEED_REPLY, 0))
    try:
        reply = await trial.next_reply(frontend)
    except CLOSED:
        return
    expect(reply.request == UNKNOWN, f"the next reply is one to request {reply.request}")
    expect(reply.payload != U64(0).pack(), "an unknown request was acked as well done")


@MESSAGES.should(
    9, "VHOST_USER_PROTOCOL_F_REPLY_ACK", "An unknown request does not cost the connection.", WITH_ACKS
)
async def unknown_costs_nothing(trial: Trial) -> None:
    """Sends request 1000 with the need_reply flag, takes the ack, and then sends GET_FEATURES."""
    frontend = await trial.negotiate()
    await frontend.send_raw(HEADER.pack(UNKNOWN, VERSION | NEED_REPLY, 0))
    try:
        await trial.next_reply(frontend)
    except CLOSED:
        raise Failed("an unknown request closed the connection") from None
    await trial.answers(frontend, "an unknown request closed the connection")


@MESSAGES.must(10, "Ring indices", "A ring that the device does not have is refused.", WITH_ACKS)
async def no_such_ring(trial: Trial) -> None:
    """Sends SET_VRING_NUM and SET_VRING_ENABLE of ring 200, if it has fewer, and asks for acks."""
    if trial.subject.queue_num > 200:
        skip("it has more than 200 rings")
    for row in (SET_VRING_NUM, SET_VRING_ENABLE):
        frontend = await trial.negotiate()
        await trial.refused(frontend, row, VringState(200, 1), reason=f"{row} of ring 200 was accepted")
        frontend.close()
        if trial.subject.is_one_shot:
            return


@MESSAGES.must(11, "Ring indices", "A ring index beyond all bounds is refused.", WITH_ACKS)
async def absurd_ring(trial: Trial) -> None:
    """Sends SET_VRING_NUM of ring 0xffffffff, and asks for an ack."""
    frontend = await trial.negotiate()
    await trial.refused(
        frontend, SET_VRING_NUM, VringState(0xFFFF_FFFF, 64), reason="ring 0xffffffff was accepted"
    )


@MESSAGES.should(12, "Ancillary data", "An fd that a request does not take is not kept open.")
async def surplus_fd(trial: Trial) -> None:
    """Sends the end of a pipe with SET_OWNER: afterwards the pipe ends, though the connection lives."""
    frontend = await trial.connect()
    ours, theirs = (trial.fd(end) for end in os.pipe())
    await frontend.send_raw(trial.message(SET_OWNER, Empty()), theirs)
    theirs.close()
    await trial.answers_or_closes(frontend)
    await trial.ends(ours, "an fd that came with SET_OWNER is still open in the back-end")


@MESSAGES.should(13, "SET_VRING_CALL", "An eventfd that is replaced is closed.", WITH_ACKS)
async def replaced_fd(trial: Trial) -> None:
    """Sends SET_VRING_CALL with the end of a pipe, then with an eventfd: the pipe ends."""
    frontend = await trial.negotiate()
    ours, theirs = (trial.fd(end) for end in os.pipe())
    try:
        await frontend.call(SET_VRING_CALL, VringFd(0), theirs)
    except (RefusedRequest, *CLOSED):
        skip("it takes eventfds only")
    finally:
        theirs.close()
    await frontend.call(SET_VRING_CALL, VringFd(0), trial.fd(os.eventfd(0)))
    await trial.ends(ours, "a call fd that was replaced is still open in the back-end")


@MESSAGES.must(14, "Ancillary data", "All fds are closed when the front-end has gone.", Needs(program=True))
async def fds_go_with_the_connection(trial: Trial) -> None:
    """Gives it the end of a pipe as the kick fd, and goes: the pipe ends."""
    frontend = await trial.negotiate()
    ours, theirs = (trial.fd(end) for end in os.pipe())
    await frontend.tell(SET_VRING_KICK, VringFd(0), theirs)
    theirs.close()
    frontend.close()
    await trial.ends(ours, "a kick fd is still open in the back-end, after the connection ended")
