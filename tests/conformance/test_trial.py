"""What checks do with a back-end, on one that is sound and on one that is not."""

import asyncio
import os
from collections.abc import Awaitable, Callable

import pytest

from tests.conformance.backends import fake
from tests.conftest import Run
from tests.programs import executable
from vhostd.conformance.subject import Subject
from vhostd.conformance.trial import Trial
from vhostd.conformance.verdict import Failed, Skipped
from vhostd.vhost_user.messages import (
    GET_FEATURES,
    GET_QUEUE_NUM,
    SET_OWNER,
    SET_VRING_NUM,
    ProtocolFeature,
    VringState,
)
from vhostd.virtio.vocabulary import mask
from vhostd.wire.rows import Empty

RNG = f"{executable('vhost-user-rng')} --socket-path={{socket}}"


def trying(
    run_async: Run, observe: Callable[[Trial], Awaitable[None]], command: str = RNG, kind: str = "rng"
) -> None:
    async def main() -> None:
        async with Subject(command=command, kind=kind) as subject, Trial(subject) as trial:
            await observe(trial)

    run_async(main)


def test_all_that_was_opened_is_closed_in_the_end(run_async: Run) -> None:
    async def main() -> None:
        async with Subject(command=RNG, kind="rng") as subject:
            async with Trial(subject) as trial:
                ring = await trial.ring()
                pipe, _ = map(trial.fd, os.pipe())
                await ring.work(3)
            assert not pipe
            assert not ring.memory.fd
            assert not ring.queue.call_fd
            with pytest.raises(ConnectionResetError):
                await ring.frontend.call(GET_FEATURES, Empty())

    run_async(main)


@pytest.mark.parametrize("packed", [False, True])
def test_a_ring_answers_valid_requests(run_async: Run, packed: bool) -> None:  # noqa: FBT001
    async def observe(trial: Trial) -> None:
        ring = await trial.ring(size=4, packed=packed)
        await ring.work(times=9)
        ring.post()
        ring.post()
        ring.queue.kick()
        await ring.answer()
        await ring.answer()

    trying(run_async, observe)


def test_a_wrong_answer_is_told(run_async: Run) -> None:
    async def observe(trial: Trial) -> None:
        ring = await trial.ring()
        ring.exchange = ring.exchange._replace(good=lambda _: False)
        with pytest.raises(Failed, match="a valid request was answered by"):
            await ring.work()
        ring.queue.patience = 0.01
        with pytest.raises(Failed, match="a valid request was not answered"):
            await ring.answer()

    trying(run_async, observe)


def test_where_there_is_no_ring_the_check_is_skipped(run_async: Run) -> None:
    async def observe(trial: Trial) -> None:
        with pytest.raises(Skipped, match="no request is known here for a 9p"):
            await trial.ring()
        trial.subject.kind = "rng"
        with pytest.raises(Skipped, match="packed rings are not offered"):
            await trial.ring(packed=True)

    trying(run_async, observe, fake("sound"), "9p")


def test_replies_byte_by_byte(run_async: Run) -> None:
    async def observe(trial: Trial) -> None:
        frontend = await trial.connect()
        await frontend.send_raw(trial.message(SET_OWNER, Empty()))
        reply = await trial.reply_to(frontend, GET_FEATURES, Empty())
        assert (reply.request, len(reply.payload)) == (GET_FEATURES.request, 8)
        await frontend.send_raw(trial.message(GET_FEATURES, Empty(), flags=2))
        with pytest.raises(ConnectionResetError):
            await trial.next_reply(frontend)

    trying(run_async, observe)


def test_what_is_refused(run_async: Run) -> None:
    async def observe(trial: Trial) -> None:
        frontend = await trial.negotiate()
        await trial.refused(frontend, SET_VRING_NUM, VringState(99, 1), reason="?")
        with pytest.raises(Failed, match="it was accepted"):
            await trial.refused(frontend, SET_OWNER, Empty(), reason="it was accepted")
        await trial.answers(frontend, "?")
        assert not await trial.closed(frontend)
        frontend.close()
        plain = await trial.negotiate(protocol_features=mask(ProtocolFeature.MQ))
        with pytest.raises(Skipped, match="without REPLY_ACK"):
            await trial.refused(plain, SET_OWNER, Empty(), reason="?")
        assert (await plain.call(GET_QUEUE_NUM, Empty())).value == 1

    trying(run_async, observe)


@pytest.mark.parametrize(
    ("manner", "reason"), [("closing", "it went"), ("talking", "what came was no reply")]
)
def test_what_ends_a_connection(run_async: Run, manner: str, reason: str) -> None:
    async def observe(trial: Trial) -> None:
        frontend = await trial.connect()
        await frontend.tell(SET_OWNER, Empty())
        with pytest.raises(Failed, match=reason):
            await trial.answers(frontend, "it went")
        other = await trial.connect() if manner == "closing" else frontend
        await trial.answers_or_closes(other)

    trying(run_async, observe, fake(manner))


def test_a_pipe_that_ends(run_async: Run) -> None:
    async def observe(trial: Trial) -> None:
        ours, theirs = map(trial.fd, os.pipe())
        asyncio.get_running_loop().call_soon(theirs.close)
        await trial.ends(ours, "?")
        ours, theirs = map(trial.fd, os.pipe())
        trial.subject.patience = 0.01
        with pytest.raises(Failed, match="it is still open"):
            await trial.ends(ours, "it is still open")

    trying(run_async, observe)
