"""Our own programs, for a short while; the long run is in the notes of a release."""

import shlex
from pathlib import Path

import pytest

from tests.programs import PROGRAMS, executable, needed_options
from vhostd.fuzz.campaign import Campaign, Plan, Progress
from vhostd.fuzz.findings import Found
from vhostd.fuzz.grammar import Scope

CASES = 25


@pytest.mark.parametrize("program", PROGRAMS)
def test_nothing_is_found(program: str, tmp_path: Path) -> None:
    said: list[Progress | Found] = []
    options = needed_options(program, "{folder}")
    command = shlex.join([executable(program), "--socket-path={socket}", *options])
    plan = Plan(command, 17, Scope(types=(PROGRAMS[program],)), CASES, None, None)
    Campaign(plan, tmp_path, said.append).run()
    assert not [each for each in said if isinstance(each, Found)]
    assert isinstance(said[-1], Progress)
    assert said[-1].cases >= CASES
    assert said[-1].starts == 1
