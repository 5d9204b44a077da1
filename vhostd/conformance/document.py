"""What was found, as a JSON document."""

from pydantic import BaseModel

from vhostd.conformance.verdict import Level, Outcome


class Verdict(BaseModel):
    """One check. `reason` says why it failed or was skipped."""

    id: str
    group: str
    level: Level
    section: str
    clause: str
    outcome: Outcome
    reason: str
    seconds: float


class Report(BaseModel):
    """All checks of a back-end. It is `conforming` if no must failed."""

    backend: str
    type: str
    version: str
    conforming: bool
    checks: tuple[Verdict, ...]
