"""Each check finds the fault that was planted for it (faults.py), and none in our programs as they are."""

import asyncio
import shlex
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.conformance.faults import Fault, all_faults
from tests.programs import executable
from vhostd.conformance.check import Check, matching
from vhostd.conformance.groups import GROUPS
from vhostd.conformance.runner import Result, run
from vhostd.conformance.subject import Subject
from vhostd.conformance.verdict import Level, Outcome

ROOT = Path(__file__).parents[2]
PROGRAMS = {  # by the type of the device: its program, and what it needs beside a socket
    "block": "vhost-user-blk --ram=16M",
    "console": "vhost-user-console --port=pty --port=name=agent,socket={folder}/agent.sock",
    "gpu": "vhost-user-gpu",
    "input": "vhost-user-input --event-socket={folder}/keys.sock",
    "rng": "vhost-user-rng",
    "net": "tests.conformance.devices.net",
    "vsock": "tests.conformance.devices.vsock",
}
IN_CHECKOUT = ["env", f"--chdir={ROOT}", sys.executable, "-m"]  # and the name of a module
AMPLE = 60.0  # seconds of patience with a program that has no fault
AT_ONCE = 4  # programs that run side by side: most of the time they wait
FAULTS = all_faults()
CHECKS = matching(GROUPS, ())
TRIES = 8  # of a check to find a fault, which may need another order of events, or more patience
# Checks that no fault is planted for, and why.
UNPLANTED = {
    "CONN-12": "the fault that was planted for it showed by chance only",
    "ROB-8": "the same",
    "BLK-7": "a disk in memory may be written",
    "BLK-16": "compiled code writes the used length",
    "BLK-25": "as BLK-16",
    "INP-6": "as BLK-16",
}


@pytest.fixture(scope="module")
def sound() -> dict[str, dict[str, Result]]:
    """What the checks say of our programs as they are, by type and id."""

    async def main() -> dict[str, dict[str, Result]]:
        judging = (_results(kind, _command(kind), CHECKS, patience=AMPLE) for kind in PROGRAMS)
        results = await asyncio.gather(*judging)
        return dict(zip(PROGRAMS, results, strict=True))

    return asyncio.run(main())


@pytest.fixture(scope="module")
def verdicts(request: pytest.FixtureRequest) -> dict[str, Result | BaseException]:
    """What its check says of each mutant that was selected, by name."""
    wanted = {item.callspec.id for item in request.session.items if hasattr(item, "callspec")}
    selected = [fault for fault in FAULTS if str(fault) in wanted]

    async def main() -> dict[str, Result | BaseException]:
        turn = asyncio.Semaphore(AT_ONCE)
        results = await asyncio.gather(*(_verdict(fault, turn) for fault in selected), return_exceptions=True)
        return {fault.name: result for fault, result in zip(selected, results, strict=True)}

    return asyncio.run(main())


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_planted_fault_is_found(fault: Fault, verdicts: dict[str, Result | BaseException]) -> None:
    result = verdicts[fault.name]
    if isinstance(result, BaseException):
        raise result
    assert result.outcome is Outcome.FAILED, result.reason
    assert fault.reason in result.reason


@pytest.mark.parametrize("kind", PROGRAMS)
def test_our_programs_are_sound(kind: str, sound: dict[str, dict[str, Result]]) -> None:
    failed = [
        result
        for result in sound[kind].values()
        if result.outcome is Outcome.FAILED and result.check.level is not Level.ADVICE
    ]
    assert not failed, [f"{result.check.id}: {result.reason}" for result in failed]
    planted = {fault.check for fault in FAULTS if fault.program == kind and not fault.options}
    skipped = {id for id, result in sound[kind].items() if result.outcome is Outcome.SKIPPED}
    assert not planted & skipped, "these checks cannot find a fault there"


def test_every_check_has_a_fault() -> None:
    planted = {fault.check for fault in FAULTS}
    assert {check.id for check in CHECKS} - planted == set(UNPLANTED)


def test_every_fault_has_a_name_of_its_own() -> None:
    assert max(Counter(fault.name for fault in FAULTS).values()) == 1


async def _verdict(fault: Fault, turn: asyncio.Semaphore) -> Result:
    """What its check says of a mutant; once it finds the fault, since some show by chance only."""
    async with turn:
        checks = matching(GROUPS, [fault.check])
        for number in range(1, TRIES + 1):
            patience = number * fault.patience
            results = await _results(fault.program, _mutant(fault), checks, patience=patience)
            result = results[fault.check]
            if result.outcome is Outcome.FAILED and fault.reason in result.reason:
                break
    return result


async def _results(kind: str, command: str, checks: list[Check], *, patience: float) -> dict[str, Result]:
    async with Subject(command=command, kind=kind) as subject:
        assert subject.program is not None
        subject.patience = subject.program.patience = patience  # a start may always take its time
        return {result.check.id: result async for result in run(subject, checks, destructive=True)}


def _command(kind: str) -> str:
    program, *options = PROGRAMS[kind].split()
    start = [*IN_CHECKOUT, program] if program.startswith("tests.") else [executable(program)]
    return shlex.join([*start, "--socket-path={socket}", *options])


def _mutant(fault: Fault) -> str:
    start = [*IN_CHECKOUT, "tests.conformance.mutant", fault.name]
    _, *options = PROGRAMS[fault.program].split()
    return shlex.join(
        [*start, "--socket-path={socket}", "--sandbox=none", *options, *shlex.split(fault.options)]
    )
