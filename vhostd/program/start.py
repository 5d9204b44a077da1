"""The first steps of a program, in an order that matters.

libvirt asks a program for its capabilities whenever it starts a domain: that answer loads nothing else. And
the process is prepared before the rest is loaded, which takes a while, in which signals may come. So this
module imports in its functions, as no other does.

status 0    the end was asked for: SIGTERM, SIGINT, or the only connection has ended, be it by an error
            of the front-end's, which the log tells
status 1    the program could not start or go on; one line on stderr says why
status 2    the command line makes no sense; one line on stderr says why
"""

import gc

from vhostd.errors import SetupError, UsageError
from vhostd.program.command_line import CommandLine
from vhostd.program.stdout import say


def start(device: str | type[object], command: CommandLine, *, capabilities: str) -> int:
    """Runs a device's program and returns its exit status (main.py)."""
    try:
        if not {"--print-capabilities", "-c"}.isdisjoint(command.arguments):  # which ignores all else
            say(f"{capabilities}\n")
        else:
            _serve(device, command)
    except (SetupError, MemoryError) as error:
        _complain(command.program, error)
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:  # before signals were held
        pass
    return 0


def _serve(device: str | type[object], command: CommandLine) -> None:
    from vhostd.program.process import prepare

    prepare()
    gc.disable()  # until all is loaded (main.py), since nothing of that is garbage

    from vhostd.program.lean import load_event_loop

    load_event_loop()

    from vhostd.program.main import load, serve_device

    serve_device(load(device), command)


def _complain(program: str, error: Exception) -> None:
    from vhostd.program.log import complain

    complain(program, error if str(error) else SetupError("out of memory"))
