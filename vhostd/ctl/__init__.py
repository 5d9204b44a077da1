"""vhostctl: runs virtual machines with back-end programs; finds, checks and installs such programs.

Each command is a module of this package. Its docstring is the help, `add_options` declares its options, and
`run` executes the command and returns the exit status.

status 0    all is well
status 1    a fault was found, or the command failed; one line on stderr says why
status 2    the command line makes no sense; one line on stderr says why
"""

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import NoReturn

from vhostd import __version__
from vhostd.ctl.output import printable
from vhostd.errors import SetupError, UsageError
from vhostd.program.log import write_line
from vhostd.program.parser import Parser

SIGNALLED = 128  # plus the signal's number: a shell's exit status for a program that a signal has ended
COMMANDS = {  # each command's name and its module
    "run": "run",
    "status": "status",
    "list": "listing",
    "probe": "probe",
    "check": "check",
    "validate": "validate",
    "fuzz": "fuzz",
    "install": "install",
    "uninstall": "uninstall",
    "trace": "trace",
    "replay": "replay",
}


def make_parser() -> Parser:
    """The parser of the program, with all its commands."""
    parser = Parser(prog="vhostctl", description="Runs, finds, checks and installs vhost-user back-ends.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, file in COMMANDS.items():
        module = import_module(f"vhostd.ctl.{file}")
        summary, _, more = (module.__doc__ or "").partition("\n")
        command = commands.add_parser(
            name, help=summary, description=summary, epilog=more.strip(), allow_abbrev=False
        )
        module.add_options(command)
        command.set_defaults(run=module.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The program `vhostctl`."""
    try:
        options = make_parser().parse_args(sys.argv[1:] if arguments is None else arguments)
        with _signals_as_exit():
            status: int = options.run(options)
    except SetupError as error:
        write_line(f"vhostctl: error: {printable(' '.join(str(error).splitlines()))}")
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        return SIGNALLED + signal.SIGINT
    return status


@contextmanager
def _signals_as_exit() -> Iterator[None]:
    """Turns signals into SystemExit, so that a program that was started to be asked is ended too."""
    numbers = [
        number
        for number in (signal.SIGHUP, signal.SIGTERM)
        if signal.getsignal(number) == signal.SIG_DFL  # nohup(1) ignores SIGHUP
    ]
    for number in numbers:
        signal.signal(number, _exit)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def _exit(number: int, _: object) -> NoReturn:
    raise SystemExit(SIGNALLED + number)
