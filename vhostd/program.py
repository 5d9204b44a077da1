"""A device as a program: options, log, exit status.

status 0    the end was asked for: SIGTERM, SIGINT, or the front-end of a connected socket went
status 1    the program could not start or go on; one line on stderr says why
status 2    the command line makes no sense; one line on stderr says why
"""

import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from vhostd.capabilities import capabilities
from vhostd.device import Device
from vhostd.errors import SetupError, UsageError

if TYPE_CHECKING:
    import argparse

    from vhostd.endpoint import Endpoint


def run(kind: type[Device], arguments: Sequence[str] | None = None) -> int:
    """Runs the device's program and returns its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if "--print-capabilities" in arguments:  # which ignores all else, and must cost next to nothing
        print(capabilities(kind))
        return 0
    # Until the event loop takes over, a signal ends the program as cleanly as later.
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, _leave)

    from vhostd.options import parse, program_name

    try:
        _run(kind, parse(kind, arguments))
    except SetupError as error:
        print(f"{program_name()}: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


def _run(kind: type[Device], options: "argparse.Namespace") -> None:
    from vhostd import log
    from vhostd.activation import activated_fd
    from vhostd.endpoint import adopt, choose, listen
    from vhostd.options import program_name

    log.set_up(program_name(), options.log_level)
    place = choose(options.socket_path, options.fd, activated_fd())
    device = kind.from_options(options)
    try:
        if isinstance(place, str):
            endpoint = listen(place, mode=options.socket_mode, group=options.socket_group)
        else:
            endpoint = adopt(place)
        try:
            _loop(device, endpoint)
        finally:
            endpoint.close()
    finally:
        device.close()


def _loop(device: Device, endpoint: "Endpoint") -> None:
    import asyncio

    import uvloop

    from vhostd.server import serve

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(device, endpoint))


def _leave(_number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(0)
