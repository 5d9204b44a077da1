"""Checks a back-end, anybody's, against the specifications of vhost-user and virtio.

CMD is a command line, such as 'vhost-user-rng --socket-path={socket}'. A program that takes its socket as an
fd has {listener} in place of its number, or {fd} for a socket that is connected. With --socket the back-end
already runs, and must have no front-end. With --description it is started as libvirt would.

Every clause that a front-end can observe is a check with a number. Its level is must, should or advice. The
exit status is 1 if a must failed. A check that is skipped says why, and is never a pass. What may change what
a device has stored is skipped, unless --destructive is given. CONFORMANCE.md lists all checks. To see what a
check does, repeat it by --only ID --trace.
"""

import argparse
from pathlib import Path

from vhostd.conformance.document import Report
from vhostd.ctl.output import add_json
from vhostd.ctl.target_options import add_exec


def add_options(parser: argparse.ArgumentParser) -> None:
    backend = parser.add_mutually_exclusive_group()
    add_exec(backend)
    backend.add_argument("--socket", metavar="PATH", type=Path, help="the socket of a back-end that runs")
    backend.add_argument("--description", metavar="FILE", type=Path, help="a description of a program")
    parser.add_argument("--type", metavar="TYPE", help="the type of its device; by default what it says")
    parser.add_argument(
        "--only", metavar="ID", action="append", default=[], help="this check, or group of checks, only"
    )
    parser.add_argument("--list", action="store_true", help="only print the checks")
    parser.add_argument("--destructive", action="store_true", help="also do what may change stored data")
    parser.add_argument(
        "--patience", metavar="SECONDS", type=float, help="how long an answer may take; default: 10"
    )
    formats = parser.add_mutually_exclusive_group()
    formats.add_argument("--tap", action="store_true", help="print a TAP stream")
    formats.add_argument("--junit", action="store_true", help="print JUnit's XML")
    formats.add_argument("--trace", action="store_true", help="print all that is said, a line each message")
    add_json(parser, Report)


def run(options: argparse.Namespace) -> int:
    """Prints a row for each check as it ends; the status is 1 if a must failed."""
    from vhostd.ctl.checking import check  # with the event loop, and all checks

    return check(options)
