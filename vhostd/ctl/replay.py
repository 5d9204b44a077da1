"""Speaks the front-end's part of a recording of `vhostctl trace --write` to a back-end.

It sends the recorded messages in their order, each with new fds of the kinds that were passed, and waits for
each reply where one was recorded. It answers what the back-end asks as the recorded front-end did. A line
tells each reply that is not as recorded; the status is 1 then. Replies about rings differ without --memory,
since nothing is in the rings.
"""

import argparse
from pathlib import Path

from vhostd.ctl.output import printable, show
from vhostd.ctl.target_options import add_target
from vhostd.trace.features import DEVICES


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", type=Path, help="the recording")
    add_target(parser)
    parser.add_argument(
        "--memory", action="store_true", help="put into the rings what the recording has of them"
    )
    parser.add_argument(
        "--connection",
        metavar="N",
        type=int,
        default=1,
        help="the front-end's N-th connection, default 1",
    )
    parser.add_argument(
        "--type", metavar="TYPE", choices=DEVICES, help="the type of the device, to name its feature bits"
    )


def run(options: argparse.Namespace) -> int:
    """Replays; returns 1 if anything differs."""
    # Here, since only few commands of vhostctl need an event loop.
    from vhostd.ctl.replaying import replay

    replayed = replay(options, lambda line: show([printable(line)]))
    counts = f"{replayed.same} replies as recorded, {replayed.differing} differences"
    show([f"{replayed.sent} messages sent, {counts}"])
    return 1 if replayed.differing else 0
