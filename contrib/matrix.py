"""Checks the back-ends of contrib/peers.toml, and writes docs/conformance-matrix.md of what was found.

    contrib/peers.sh
    .venv/bin/python -m contrib.matrix check REPORTS [NAME...]    # a report for each back-end, in this folder
    .venv/bin/python -m contrib.matrix page REPORTS               # the page of these reports

A report is what `vhostctl check --json` has printed, and which back-end in which version it was.
"""

import os
import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import BaseModel

import vhostd
from vhostd.conformance.check import Check
from vhostd.conformance.document import Report, Verdict
from vhostd.conformance.groups import GROUPS
from vhostd.conformance.verdict import Level, Outcome

CHECKOUT = Path(__file__).parents[1]
TABLE = CHECKOUT / "contrib/peers.toml"
PAGE = CHECKOUT / "docs/conformance-matrix.md"
PROGRAMS = Path(sys.executable).parent
LEVELS = {clause.id: clause.level for group in GROUPS for clause in group}  # as they are now
OURS = "vhostd"
# In a reason: times, folders and processes, which are others each time.
VARYING = re.compile(
    r"/tmp/backend-\w+/|/\S+/vhostd/peers/(?:root/)?"
    r"|\d{4}-\d\d-\d\dT[\d:.]+Z |\d\d:\d\d:\d\d\.\d+: |:\d+(?=\))| from PID \d+"
)
INTRODUCTION = """\
# How back-ends conform

`vhostctl check` was run on back-ends of several projects, and on our own. All are Debian's packages, or built
from the source that the version names. [How to repeat it](#how-to-repeat-it). What each check does, and why a
clause is read so, stands in [CONFORMANCE.md](../CONFORMANCE.md).

A deviation is not always a fault that a user meets: the front-ends in use avoid most of them. A *must* is
what the specification demands, or what keeps a hostile guest from the host. Some programs end as soon as
their guest or front-end does wrong, and mean to: passt, and devices of rust-vmm. Here that breaks a must too,
since the other side alone should not be able to end a program of the host.
"""
REPEAT = """\
## How to repeat it

As root on Debian, in a checkout:

    contrib/peers.sh
    .venv/bin/python -m contrib.matrix check build/reports
    .venv/bin/python -m contrib.matrix page build/reports

The devices of rust-vmm that Debian has no package of are built from a checkout of their source:
`contrib/peers.sh CHECKOUT`. `contrib/peers.toml` has the command line of each back-end. One of them alone,
without `RUST_BACKTRACE`, since a program in a sandbox may be ended when it looks for a backtrace:

    vhostctl check --exec 'CMD --socket-path={socket}' --type TYPE --destructive
"""


class BackEnd(BaseModel):
    """An entry of the table. `package` is the name under which the folder of peers lists its version."""

    name: str
    project: str = OURS
    language: str
    device: str
    command: str
    package: str = ""


class Checked(BaseModel):
    """What is kept of a back-end: which it was, in which version, and what was found."""

    back_end: BackEnd
    version: str
    report: Report

    def count(self, prefix: str) -> str:
        """How many checks of a group it has passed, of those that were not skipped."""
        outcomes = [each.outcome for each in self.report.checks if each.group == prefix]
        judged = len(outcomes) - outcomes.count(Outcome.SKIPPED)
        return f"{outcomes.count(Outcome.PASSED)}/{judged}" if judged else ""

    def broken(self, level: Level) -> int:
        """How many clauses of a level it breaks."""
        return sum(LEVELS.get(each.id) is level for each in self.deviations)

    @property
    def deviations(self) -> list[Verdict]:
        """What has failed."""
        return [each for each in self.report.checks if each.outcome is Outcome.FAILED]


# --- To check -------------------------------------------------------------------------------------------


def peers_folder() -> Path:
    """Where contrib/peers.sh has made the folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "vhostd/peers"


def back_ends() -> list[BackEnd]:
    """All of the table, ours last."""
    table = tomllib.loads(TABLE.read_text())
    return [BackEnd(**entry) for entry in (*table["peer"], *table["own"])]


def versions(folder: Path) -> dict[str, str]:
    """The versions of what is in the folder, by package; none if there is no folder."""
    path = folder / "versions"
    return dict(line.split(" ", 1) for line in path.read_text().splitlines()) if path.exists() else {}


def check(back_end: BackEnd, folder: Path) -> Checked:
    """Runs all checks on one of them."""
    found = subprocess.run(
        [
            *(PROGRAMS / "vhostctl", "check", "--json", "--destructive"),
            *("--type", back_end.device, "--exec", back_end.command.replace("{peers}", str(folder))),
        ],
        stdout=subprocess.PIPE,
        env={**os.environ, "RUST_BACKTRACE": "0", "PATH": f"{PROGRAMS}:{os.environ['PATH']}"},
        text=True,
        check=False,
    )
    if not found.stdout:
        raise SystemExit(f"{back_end.name} could not be checked")
    version = versions(folder)[back_end.package] if back_end.package else vhostd.__version__
    return Checked(back_end=back_end, version=version, report=Report.model_validate_json(found.stdout))


def check_all(reports: Path, names: Sequence[str]) -> None:
    """Writes a report for each, or for those that are named, and says how it went."""
    reports.mkdir(parents=True, exist_ok=True)
    folder = peers_folder()
    there = versions(folder)
    for back_end in back_ends():
        if names and back_end.name not in names:
            continue
        if back_end.package and back_end.package not in there:
            print(f"{back_end.name}: it is not in {folder}")
            continue
        found = check(back_end, folder)
        (reports / f"{back_end.name}.json").write_text(found.model_dump_json(indent=2))
        print(f"{back_end.name}: {len(found.deviations)} deviations, {found.broken(Level.MUST)} of a must")


# --- The page -------------------------------------------------------------------------------------------


def page(checked: Sequence[Checked]) -> str:
    """The whole page."""
    return "\n".join([INTRODUCTION, *overview(checked), *all_deviations(checked), REPEAT])


def overview(checked: Sequence[Checked]) -> Iterator[str]:
    """A row for each back-end: what it is, and its counts by group."""
    yield "## Checks that were passed"
    yield ""
    yield "Of those that the device has something to show for, by group:"
    yield ""
    heads = [group.prefix for group in GROUPS]
    yield row("back-end", "version", "device", "language", *heads, "must", "should")
    yield row(*["---"] * (len(heads) + 6))
    for one in checked:
        it = one.back_end
        counts = [one.count(prefix) for prefix in heads]
        broken = [str(one.broken(level)) for level in (Level.MUST, Level.SHOULD)]
        yield row(f"{it.name} ({it.project})", one.version, it.device, it.language, *counts, *broken)
    yield ""
    yield "The last two columns count the clauses that it breaks. The groups:"
    yield "; ".join(f"{group.prefix}: {group.title.lower()}" for group in GROUPS) + "."
    yield ""


def all_deviations(checked: Sequence[Checked]) -> Iterator[str]:
    """Each clause that is broken, who breaks it, and what was observed; by group."""
    yield "## Deviations"
    yield ""
    for group in GROUPS:
        rows = [found for clause in group if (found := deviations(clause, checked))]
        if rows:
            yield f"### {group.title}"
            yield ""
            yield row("check", "level", "clause", "observed")
            yield row(*["---"] * 4)
            yield from rows
            yield ""


def deviations(clause: Check, checked: Sequence[Checked]) -> str:
    """The row of one clause; empty if nobody breaks it."""
    who = defaultdict(list)
    for one in checked:
        for verdict in one.deviations:
            if verdict.id == clause.id:
                who[VARYING.sub("", verdict.reason)].append(one.back_end.name)
    observed = "<br>".join(f"{escaped(reason)}: *{', '.join(names)}*" for reason, names in who.items())
    what = f"{clause.gist} ({clause.section})"
    return observed and row(clause.id, clause.level, escaped(what), observed)


def row(*cells: str) -> str:
    """A row of a table."""
    return f"| {' | '.join(cells)} |"


def escaped(text: str) -> str:
    """Text of a program as Markdown shows it. An option in it is one of that program, not of ours."""
    return "".join(f"\\{char}" if char in "\\|*<>[]`_-" else char for char in text)


def load(reports: Path) -> list[Checked]:
    """The reports of a folder, in the order of the table."""
    paths = (reports / f"{back_end.name}.json" for back_end in back_ends())
    return [Checked.model_validate_json(path.read_text()) for path in paths if path.exists()]


def main(arguments: Sequence[str]) -> None:
    """Does what the docstring of the module says."""
    match arguments:
        case ["check", reports, *names]:
            check_all(Path(reports), names)
        case ["page", reports]:
            PAGE.write_text(page(load(Path(reports))))
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
