"""One check after the other: how each ends, and what is skipped."""

import asyncio
from collections.abc import Sequence

import pytest

from tests.conformance.backends import fake
from tests.conformance.fake import FEATURES
from tests.conftest import Run
from vhostd.conformance import runner
from vhostd.conformance.check import NOTHING, Check, Needs, Observation
from vhostd.conformance.runner import run
from vhostd.conformance.subject import Subject
from vhostd.conformance.trial import Trial
from vhostd.conformance.verdict import Failed, Level, Outcome, skip
from vhostd.errors import DeviceError, GuestError, MalformedMessage, RefusedRequest
from vhostd.vhost_user.messages import GET_FEATURES, SET_OWNER, ProtocolFeature
from vhostd.virtio.vocabulary import Feature
from vhostd.wire.rows import Empty


def check(observe: Observation, needs: Needs = NOTHING) -> Check:
    return Check("T-1", Level.MUST, "Tests", "It is tested.", needs, observe)


async def verdicts(
    subject: Subject, checks: Sequence[Check], *, destructive: bool = False
) -> list[tuple[Outcome, str]]:
    running = run(subject, checks, destructive=destructive)
    return [(outcome, reason) async for _, outcome, reason, _ in running]


async def well(trial: Trial) -> None:
    await (await trial.connect()).call(GET_FEATURES, Empty())


async def own(trial: Trial) -> None:
    await (await trial.connect()).tell(SET_OWNER, Empty())


def raising(error: Exception) -> Observation:
    async def observe(trial: Trial) -> None:
        raise error

    return observe


async def skipping(trial: Trial) -> None:
    skip("there is\nnone")


async def forever(trial: Trial) -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("observe", "verdict"),
    [
        (well, (Outcome.PASSED, "")),
        (skipping, (Outcome.SKIPPED, "there is none")),
        (raising(Failed("it is\n  green")), (Outcome.FAILED, "it is green")),
        (raising(RefusedRequest("SET_OWNER was refused")), (Outcome.FAILED, "SET_OWNER was refused")),
        (raising(MalformedMessage("no message")), (Outcome.FAILED, "no message")),
        (raising(DeviceError("too many bytes")), (Outcome.FAILED, "too many bytes")),
        (raising(GuestError("the ring is broken")), (Outcome.FAILED, "the ring is broken")),
        (raising(BrokenPipeError()), (Outcome.FAILED, "it closed the connection")),
        (raising(TimeoutError()), (Outcome.FAILED, "it did not answer in time")),
    ],
)
def test_how_a_check_ends(run_async: Run, observe: Observation, verdict: tuple[Outcome, str]) -> None:
    async def main() -> None:
        async with Subject(command=fake("sound")) as subject:
            assert await verdicts(subject, [check(observe)]) == [verdict]

    run_async(main)


def test_a_fault_of_a_check_is_nobodys_verdict(run_async: Run) -> None:
    async def main() -> None:
        async with Subject(command=fake("sound")) as subject:
            with pytest.raises(ZeroDivisionError):
                await verdicts(subject, [check(raising(ZeroDivisionError()))])

    run_async(main)


def test_no_check_waits_for_ever(run_async: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "LIMIT", 0.01)

    async def main() -> None:
        async with Subject(command=fake("sound")) as subject:
            [(outcome, reason)] = await verdicts(subject, [check(forever)])
            assert outcome is Outcome.FAILED
            assert reason.startswith("the check was not done after 0.")

    run_async(main)


@pytest.mark.parametrize("observe", [own, raising(Failed("it is green")), skipping])
def test_one_that_has_not_survived_a_check_has_failed(run_async: Run, observe: Observation) -> None:
    async def both(trial: Trial) -> None:
        await own(trial)
        assert trial.subject.program is not None
        await trial.subject.program.ended()
        await observe(trial) if observe is not own else None

    async def main() -> None:
        async with Subject(command=fake("ending")) as subject:
            assert await verdicts(subject, [check(both), check(well)]) == [
                (Outcome.FAILED, "the program ended with status 1: it cannot go on"),
                (Outcome.PASSED, ""),
            ]

    run_async(main)


@pytest.mark.parametrize(
    ("needs", "reason"),
    [
        (Needs(protocol=(ProtocolFeature.MQ, ProtocolFeature.CONFIG)), "it does not offer MQ and CONFIG"),
        (Needs(features=(Feature.RING_PACKED,)), "it does not offer RING_PACKED"),
        (Needs(features=(Feature.VERSION_1,)), ""),
        (Needs(lacks=(ProtocolFeature.MQ,)), ""),
        (
            Needs(kinds=("gpu", "block")),
            "this is for a device of type gpu or block; say which this is: --type",
        ),
        (Needs(kinds=("rng",)), ""),
        (Needs(program=True, exchange=True), ""),
        (Needs(destructive=True), "it may change what is stored there: --destructive"),
    ],
)
def test_a_check_is_skipped_where_it_says_nothing(run_async: Run, needs: Needs, reason: str) -> None:
    async def main() -> None:
        async with Subject(command=fake("sound"), kind="rng") as subject:
            assert subject.features == FEATURES
            outcome = Outcome.SKIPPED if reason else Outcome.PASSED
            assert await verdicts(subject, [check(well, needs)]) == [(outcome, reason)]
            destructive = await verdicts(subject, [check(well, needs)], destructive=True)
            assert destructive == [(outcome, reason)] or needs.destructive

    run_async(main)


def test_what_a_check_needs_that_only_some_have(run_async: Run) -> None:
    async def main() -> None:
        async with Subject(command=fake("sound"), kind="9p") as subject:
            subject.protocol_features = 1 << ProtocolFeature.MQ
            subject.program, program = None, subject.program
            needs = [Needs(lacks=(ProtocolFeature.MQ,)), Needs(program=True), Needs(exchange=True)]
            try:
                missing = [runner._missing(subject, check(well, need), destructive=True) for need in needs]
            finally:
                subject.program = program
            assert missing == [
                "it offers MQ",
                "this needs a command that starts the program",
                "no request is known here for a device of type 9p",
            ]

    run_async(main)
