"""vhostctl: finds, checks and installs back-end programs, ours and others'.

Each command is a module of this package: its docstring's first line is the help, `add_options` declares its
options, and `run` does it and returns the exit status.

status 0    all is well
status 1    it is not, or it could not be done; one line on stderr says why
status 2    the command line makes no sense; one line on stderr says why
"""

import sys
from collections.abc import Sequence
from importlib import import_module

from vhostd import __version__
from vhostd.ctl.text import printable
from vhostd.errors import SetupError, UsageError
from vhostd.log import write_line
from vhostd.options import Parser

INTERRUPTED = 130  # as shells say that a program was
COMMANDS = {  # and the module of each
    "list": "listing",
    "probe": "probe",
    "validate": "validate",
    "install": "install",
    "uninstall": "uninstall",
}


def make_parser() -> Parser:
    """The parser of the program, with all its commands."""
    parser = Parser(prog="vhostctl", description="Finds, checks and installs vhost-user back-ends.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, file in COMMANDS.items():
        module = import_module(f"vhostd.ctl.{file}")
        text = (module.__doc__ or "").partition("\n")[0]
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        module.add_options(command)
        command.set_defaults(run=module.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The program `vhostctl`."""
    try:
        options = make_parser().parse_args(sys.argv[1:] if arguments is None else arguments)
        status: int = options.run(options)
    except SetupError as error:
        write_line(f"vhostctl: error: {printable(' '.join(str(error).splitlines()))}")
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        return INTERRUPTED
    return status
