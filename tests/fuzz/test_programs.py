"""Our own programs, for a short while; the long run is in the notes of a release."""

from pathlib import Path

import pytest

from tests.programs import executable
from vhostd.fuzz.campaign import Campaign, Plan, Progress
from vhostd.fuzz.findings import Found
from vhostd.fuzz.grammar import Scope

CASES = 25
PROGRAMS = {
    "rng": "vhost-user-rng",
    "console": "vhost-user-console",
    "gpu": "vhost-user-gpu",
    "input": "vhost-user-input --event-socket={folder}/events",
    "block": "vhost-user-blk --ram=16M",
}


@pytest.mark.parametrize("kind", PROGRAMS)
def test_nothing_is_found(kind: str, tmp_path: Path) -> None:
    said: list[Progress | Found] = []
    name, _, options = PROGRAMS[kind].partition(" ")
    command = f"{executable(name)} --socket-path={{socket}} {options}"
    plan = Plan(command, 17, Scope(types=(kind,)), CASES, None, None)
    Campaign(plan, tmp_path, said.append).run()
    assert not [each for each in said if isinstance(each, Found)]
    assert isinstance(said[-1], Progress)
    assert said[-1].cases >= CASES
    assert said[-1].starts == 1
