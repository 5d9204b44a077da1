"""Shows what a front-end and a back-end say to each other: a line for each message.

It stands between them: the front-end connects to --listen, and the back-end of --connect or --exec gets the
same bytes and fds. So do the back-end's own requests and a GPU's display. Whoever connects again is served
again, and a program of --exec that has ended is started again. If nobody reads the lines any more, the
connections go on. SIGINT and SIGTERM end them all: a virtual machine loses its device then.

--write makes a file for `vhostctl replay`, of the same lines as --json. With --memory it has the requests in
the rings, too: for that kicks and calls go through the tracer, and arrive a little later.
"""

import argparse

from vhostd.ctl.target_options import add_target
from vhostd.trace.features import DEVICES


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--listen", metavar="PATH", required=True, help="the socket for the front-end")
    add_target(parser)
    parser.add_argument("--write", metavar="FILE", help="keep all that is said in FILE")
    parser.add_argument("--memory", action="store_true", help="also what is new in the rings")
    parser.add_argument(
        "--type", metavar="TYPE", choices=DEVICES, help="the type of the device, to name its feature bits"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object for each line")


def run(options: argparse.Namespace) -> int:
    """Traces until a signal comes."""
    # Here, since only few commands of vhostctl need an event loop.
    from vhostd.ctl.tracing import trace

    return trace(options)
