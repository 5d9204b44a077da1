"""Planted faults are found, made small, and done again by the script that is written."""

import subprocess
import sys
from pathlib import Path

import pytest

from vhostd.fuzz.campaign import Campaign, Plan, Progress
from vhostd.fuzz.findings import Findings, Found, Written
from vhostd.fuzz.grammar import Scope

SCOPE = Scope(without=frozenset({"resize"}))  # which ends a program that has no handler for SIGBUS
PLANTED = Path(__file__).with_name("planted.py")


def command(fault: str) -> str:
    return f"{sys.executable} -S -E {PLANTED} {{socket}} {fault}"


def run(fault: str, folder: Path, cases: int = 60) -> tuple[list[Written], Progress]:
    findings, progress = Findings(folder, command(fault)), Progress()

    def hear(said: Progress | Found) -> None:
        nonlocal progress
        if isinstance(said, Found):
            findings.add(said)
        else:
            progress = said

    plan = Plan(
        command(fault),
        7,
        SCOPE,
        cases,
        None,
        None,
        patience=0.1 if fault == "hang" else 1.0,
        most=1,
    )
    Campaign(plan, folder, hear).run()
    return findings.written, progress


# The fault, what it is called, and the operations that show it.
FAULTS = [
    ("message", "signal 11", {"connect", "SET_VRING_NUM"}),
    ("exit", "status 3", {"connect", "SET_LOG_FD"}),
    ("hang", "hang", {"connect", "SET_VRING_ENABLE"}),
    ("leak", "fds", {"connect", "SET_VRING_ERR"}),
    ("report", "report ERROR: AddressSanitizer", {"connect", "SET_OWNER"}),
]


@pytest.mark.parametrize(("fault", "kind", "least"), FAULTS, ids=[each[0] for each in FAULTS])
def test_a_planted_fault_is_found_and_minimised(
    fault: str, kind: str, least: set[str], tmp_path: Path
) -> None:
    found = run(fault, tmp_path)[0]
    assert found[0].found.finding.kind == kind
    assert {*found[0].found.operations} - {"await"} == least
    assert len(found[0].found.operations) <= 3
    if fault != "hang":  # which takes as long again
        assert done_again(found[0], fault) == 1
        assert done_again(found[0], "none") == 0


def test_a_fault_in_a_ring_is_found(tmp_path: Path) -> None:
    found = run("descriptor", tmp_path)[0]
    assert found[0].found.finding.kind == "signal 6"
    assert {*found[0].found.operations} >= {
        "connect",
        "SET_MEM_TABLE",
        "SET_VRING_NUM",
        "SET_VRING_ADDR",
        "kick",
    }
    assert len(found[0].found.operations) <= 9
    assert done_again(found[0], "descriptor") == 1
    assert done_again(found[0], "none") == 0


def done_again(found: Written, fault: str) -> int:
    assert found.script is not None
    return subprocess.run(
        [sys.executable, found.script, "--exec", command(fault)], stdout=subprocess.DEVNULL, check=False
    ).returncode


@pytest.mark.parametrize("fault", ["none", "once", "blocking"])
def test_nothing_is_found_where_nothing_is_wrong(fault: str, tmp_path: Path) -> None:
    found, progress = run(fault, tmp_path, cases=20)
    assert not found
    assert progress.cases >= 20
    assert progress.messages > 200
