"""Runs a back-end against hostile front-ends and drivers, made from a seed, and minimises what it finds.

CMD is the command line of a back-end, which may be anybody's. A case is a list of operations: messages, and
what a driver does to a ring. Most begin with a valid set-up. Then come wrong numbers, flags, sizes and fds,
descriptors that lead anywhere, memory that is replaced or gets shorter, and ends in the middle of something.
The same seed, corpus and offer of the back-end make the same cases.

A finding is: the program ended; it does not answer any more; a sanitizer's report, a panic or a traceback in
what it says; fds or memory that grow; a busy processor with nobody connected. Each is made as small as it
can be, and written as a script of the front-end, finding-*.py, that does it again, beside the case itself as
JSON. A corpus keeps cases that led to something new: a kind of reply, an end of the connection, a log line.
Later runs with it begin there.
"""

import argparse
import re
from pathlib import Path

from pydantic import BaseModel

from vhostd.ctl.output import add_json, show_json
from vhostd.ctl.target_options import add_exec

UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


class Finding(BaseModel):
    """One fault. `operations` are the least that shows it. `script` is null if it was not seen again."""

    kind: str
    text: str
    number: int
    operations: tuple[str, ...]
    script: str | None
    case: str


class Report(BaseModel):
    """A run. `ring_operations` are descriptors, indices, event wishes and kicks; `stuck` are connections
    that had no answer.
    """

    seed: int
    seconds: float
    cases: int
    messages: int
    ring_operations: int
    starts: int
    stuck: int
    findings: tuple[Finding, ...]


def add_options(parser: argparse.ArgumentParser) -> None:
    add_exec(parser, required=True)
    parser.add_argument(
        "--seed", metavar="N", type=int, help="the seed of all cases; by default a random one"
    )
    limit = parser.add_mutually_exclusive_group()
    limit.add_argument(
        "--time", metavar="TIME", type=_time, default=60.0, help="how long, such as 90s, 5min, 1h (60s)"
    )
    limit.add_argument("--cases", metavar="N", type=_count, help="so many cases, however long it takes")
    limit.add_argument("--case", metavar="FILE", type=Path, help="only this case, from a corpus or a finding")
    parser.add_argument(
        "--corpus", metavar="DIR", type=Path, help="begin with the cases there, and keep new ones"
    )
    parser.add_argument(
        "--findings", metavar="DIR", type=Path, default=Path(), help="where findings are written (.)"
    )
    parser.add_argument("--jobs", metavar="N", type=_count, default=1, help="so many back-ends at a time (1)")
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--messages", action="store_true", help="only hostile messages")
    part.add_argument("--rings", action="store_true", help="only hostile rings")
    parser.add_argument(
        "--type", metavar="TYPE", action="append", help="requests of this type only: block, gpu, ..."
    )
    parser.add_argument(
        "--without",
        metavar="OPERATION",
        action="append",
        default=[],
        help="leave out what is known to be fatal, such as resize or SET_LOG_BASE",
    )
    add_json(parser, Report)


def _time(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *(\w*)", text)
    if not match or match[2] not in UNITS:
        raise argparse.ArgumentTypeError(f"{text} is no time, such as 90s, 5min or 1h")
    return float(match[1]) * UNITS[match[2]]


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text} is no number from 1 on")
    return int(text)


def run(options: argparse.Namespace) -> int:
    """Runs the cases; the status is 1 if something was found."""
    # Here, since no other command of vhostctl needs what it takes.
    from vhostd.ctl.fuzzing import Fuzzing, run_case

    report = run_case(options) if options.case else Fuzzing(options).run()
    if options.json:
        show_json(report)
    return 1 if report.findings else 0
