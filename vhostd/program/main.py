"""A device as a program: options, log, exit status.

status 0    the end was asked for: SIGTERM, SIGINT, or the only connection has ended, be it by an error
            of the front-end's, which the log tells
status 1    the program could not start or go on; one line on stderr says why
status 2    the command line makes no sense; one line on stderr says why
"""

import os
import sys

from vhostd.errors import SetupError, UsageError
from vhostd.program.capabilities import capabilities
from vhostd.program.stdout import say
from vhostd.virtio.device import Device

LEAST_FDS = 32  # of which a program with all that there is has open, before any front-end comes, two thirds

TYPE_CHECKING = False  # typing's own would cost each --print-capabilities more than all of vhostd
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from vhostd.program.activation import Notifier
    from vhostd.program.endpoint import Endpoint
    from vhostd.program.metrics.address import Address
    from vhostd.program.metrics.metrics import Metrics


def run(kind: type[Device], arguments: "Sequence[str] | None" = None) -> int:
    """Runs the device's program and returns its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if "--print-capabilities" in arguments:  # which ignores all else, and must cost next to nothing
            say(f"{capabilities(kind)}\n")
        else:
            _run(kind, arguments)
    except (SetupError, MemoryError) as error:
        from vhostd.program.log import complain
        from vhostd.program.options import program_name

        complain(program_name(), error if str(error) else SetupError("out of memory"))
        return 2 if isinstance(error, UsageError) else 1
    return 0


def _run(kind: type[Device], arguments: "Sequence[str]") -> None:
    _hold_signals()
    _occupy_standard_fds()
    _expect_fds()

    from vhostd.program.options import parse

    _serve(kind, parse(kind, arguments))


def _serve(kind: type[Device], options: "argparse.Namespace") -> None:
    from contextlib import ExitStack, closing

    from vhostd.program import log
    from vhostd.program.activation import Notifier, activated_fd
    from vhostd.program.endpoint import adopt, choose, listen
    from vhostd.program.options import program_name

    log.set_up(program_name(), options.log_level)
    with ExitStack() as stack:
        notifier = stack.enter_context(closing(Notifier()))
        notifier.tell_now("STATUS=starting")
        place = choose(options.socket_path, options.fd, activated_fd())
        if not isinstance(place, str):  # first, so that it is closed whatever fails
            endpoint = stack.enter_context(closing(adopt(place)))
        device = stack.enter_context(closing(kind.from_options(options)))
        metrics = None
        if options.metrics is not None:
            metrics = stack.enter_context(closing(_open_metrics(kind, options.metrics)))
        if isinstance(place, str):  # last: whoever can connect is served
            endpoint = listen(place, mode=options.socket_mode, group=options.socket_group)
            stack.enter_context(closing(endpoint))
        _loop(device, endpoint, notifier, metrics, sandbox=options.sandbox != "none")


def _open_metrics(kind: type[Device], address: "Address") -> "Metrics":
    from vhostd import __version__
    from vhostd.program.options import program_name

    try:
        from vhostd.program.metrics.metrics import open_metrics
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        raise SetupError(
            f"--metrics needs {library}, which is not installed: Debian's python3-prometheus-client, "
            "or PyPI's prometheus-client"
        ) from None
    about = {"program": program_name(), "device": kind.kind.name.lower(), "version": __version__}
    return open_metrics(address, about)


def _loop(
    device: Device, endpoint: "Endpoint", notifier: "Notifier", metrics: "Metrics | None", *, sandbox: bool
) -> None:
    import asyncio
    from threading import Thread

    import uvloop

    from vhostd.program.server import serve
    from vhostd.ring import notify

    if sandbox:  # with everything open, and nobody served
        from vhostd.host.grants import Grants
        from vhostd.program.sandbox import enter

        grants = [device.grants(), endpoint.grants()]
        if metrics is not None:
            grants.append(metrics.grants())
        enter(Grants.together(grants))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(serve(device, endpoint, notifier, metrics))
        finally:
            Thread(target=notify.end_aio, daemon=True).start()  # which takes as long as all that is left


def _hold_signals() -> None:
    """Lets signals wait until the event loop can take them, and again once it has ended.

    An exception raised by a signal's handler in the middle of a set-up, or of an import, would leave files
    behind, or be swallowed where Python ignores exceptions. Those that only ask for something, of which a
    device may know nothing, are ignored then: a guest, too, must not notice that a terminal has been closed.
    """
    import signal

    asking = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
    for number in asking:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, *asking))


def _expect_fds() -> None:
    """Raises SetupError where so few files may be open that an event loop cannot even be made."""
    import resource

    if (most := resource.getrlimit(resource.RLIMIT_NOFILE)[0]) < LEAST_FDS:
        raise SetupError(f"RLIMIT_NOFILE is {most}: a program needs {LEAST_FDS} fds at least")


def _occupy_standard_fds() -> None:
    """Opens /dev/null in place of a closed stdin, stdout or stderr, where no socket must come to lie."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            try:
                os.open(os.devnull, os.O_RDWR)  # which gets the lowest number
            except OSError as error:
                raise SetupError(f"{os.devnull}: {error.strerror}, and fd {fd} is closed") from None
