"""A device as a program: options, log, exit status.

status 0    the end was asked for: SIGTERM, SIGINT, or the only connection has ended, be it by an error
            of the front-end's, which the log tells
status 1    the program could not start or go on; one line on stderr says why
status 2    the command line makes no sense; one line on stderr says why
"""

import os
import sys

from vhostd.capabilities import capabilities
from vhostd.device import Device
from vhostd.errors import SetupError, UsageError

TYPE_CHECKING = False  # typing's own would cost each --print-capabilities more than all of vhostd
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from vhostd.endpoint import Endpoint


def run(kind: type[Device], arguments: "Sequence[str] | None" = None) -> int:
    """Runs the device's program and returns its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if "--print-capabilities" in arguments:  # which ignores all else, and must cost next to nothing
        print(capabilities(kind))
        return 0
    _hold_signals()
    _occupy_standard_fds()

    from vhostd.options import parse

    try:
        _run(kind, parse(kind, arguments))
    except SetupError as error:
        _complain(error)
        return 2 if isinstance(error, UsageError) else 1
    return 0


def _run(kind: type[Device], options: "argparse.Namespace") -> None:
    from contextlib import ExitStack, closing

    from vhostd import log
    from vhostd.activation import activated_fd
    from vhostd.endpoint import adopt, choose, listen
    from vhostd.options import program_name

    log.set_up(program_name(), options.log_level)
    place = choose(options.socket_path, options.fd, activated_fd())
    with ExitStack() as stack:
        if not isinstance(place, str):  # first, so that it is closed whatever fails
            endpoint = stack.enter_context(closing(adopt(place)))
        device = stack.enter_context(closing(kind.from_options(options)))
        if isinstance(place, str):  # last: whoever can connect is served
            endpoint = listen(place, mode=options.socket_mode, group=options.socket_group)
            stack.enter_context(closing(endpoint))
        _loop(device, endpoint)


def _loop(device: Device, endpoint: "Endpoint") -> None:
    import asyncio

    import uvloop

    from vhostd.server import serve

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(device, endpoint))


def _hold_signals() -> None:
    """Lets SIGTERM and SIGINT wait until the event loop can take them, and again once it has ended.

    An exception raised by a signal's handler in the middle of a set-up, or of an import, would leave files
    behind, or be swallowed where Python ignores exceptions.
    """
    import signal

    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))


def _occupy_standard_fds() -> None:
    """Opens /dev/null in place of a closed stdin, stdout or stderr, where no socket must come to lie."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(fd)


def _complain(error: SetupError) -> None:
    from vhostd.log import write_line
    from vhostd.options import program_name

    write_line(f"{program_name()}: error: {' '.join(str(error).splitlines())}")
