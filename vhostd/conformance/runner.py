"""Runs one check after the other on a back-end."""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterable
from typing import NamedTuple

from vhostd.conformance.check import Check
from vhostd.conformance.subject import Subject
from vhostd.conformance.trial import Trial
from vhostd.conformance.verdict import Failed, Outcome, Skipped
from vhostd.errors import DeviceError, FrontendError, GuestError, SetupError, UsageError

LIMIT = 3  # times the patience: no check takes longer, however many answers it waits for
BROKEN = (FrontendError, DeviceError, GuestError, SetupError)  # what a back-end may do to a front-end


class Result(NamedTuple):
    """A check that was run; `reason` is why it failed, or was skipped."""

    check: Check
    outcome: Outcome
    reason: str
    seconds: float


async def run(
    subject: Subject, checks: Iterable[Check], *, destructive: bool
) -> AsyncGenerator[Result, None]:
    """Yields a result for each check. After each the back-end must serve a new front-end, else it failed."""
    for check in checks:
        begin = time.monotonic()
        outcome, reason = Outcome.PASSED, ""
        try:
            if missing := _missing(subject, check, destructive=destructive):
                raise Skipped(missing)
            await _observe(subject, check)
        except Skipped as skipped:
            outcome, reason = Outcome.SKIPPED, str(skipped)
        except Failed as failed:
            outcome, reason = Outcome.FAILED, str(failed)
        yield Result(check, outcome, " ".join(reason.split()), time.monotonic() - begin)


async def _observe(subject: Subject, check: Check) -> None:
    """Runs the check, then sees whether the back-end has survived it: that counts more than what it said."""
    failure: Exception | None = None
    limit = asyncio.timeout(LIMIT * subject.patience)
    try:
        async with limit, Trial(subject) as trial:
            await check.observe(trial)
    except TimeoutError:
        too_long = f"the check was not done after {LIMIT * subject.patience:g} s; --patience gives it longer"
        failure = Failed(too_long if limit.expired() else "it did not answer in time")
    except ConnectionError:
        failure = Failed("it closed the connection")
    except UsageError as error:  # a program that is given its one connection
        failure = Skipped(str(error))
    except BROKEN as error:
        failure = Failed(str(error) or type(error).__name__)
    except (Failed, Skipped) as error:
        failure = error
    await subject.settle()
    if failure is not None:
        raise failure


def _missing(subject: Subject, check: Check, *, destructive: bool) -> str:
    """Why a check cannot be run here; empty if it can."""
    needs = check.needs
    if needs.kinds and subject.kind not in needs.kinds:
        return f"this is for a device of type {' or '.join(needs.kinds)}; say which this is: --type"
    absent = [bit.name for bit in needs.protocol if not subject.offers(bit)]
    absent += [bit.name for bit in needs.features if not subject.has(bit)]
    if absent:
        return f"it does not offer {' and '.join(absent)}"
    if present := [bit.name for bit in needs.lacks if subject.offers(bit)]:
        return f"it offers {' and '.join(present)}"
    if needs.program and subject.program is None:
        return "this needs a command that starts the program"
    if needs.exchange and subject.exchange is None:
        return f"no request is known here for a device of type {subject.kind or 'unknown'}"
    if needs.destructive and not destructive:
        return "it may change what is stored there: --destructive"
    return ""
