"""The command line that all programs share, by QEMU's backend program conventions."""

import argparse
import re
import sys

from vhostd import __version__
from vhostd.errors import UsageError
from vhostd.program.command_line import CommandLine
from vhostd.program.endpoint import group_id
from vhostd.program.log import LEVELS
from vhostd.program.metrics.address import Address, parse_address
from vhostd.program.parser import Help, Parser, nearest
from vhostd.vhost_user.offer import CHOICES, DEFAULT_OFFER, Offer
from vhostd.virtio.device import Device

SANDBOXES = ("default", "none")
MAX_FD = 0x7FFF_FFFF
MAX_DIGITS = 18  # of a number; all that have them fit 64 bits with a sign
MAX_SIZE = (1 << 63) - 1


def make_parser(kind: type[Device], program: str) -> argparse.ArgumentParser:
    """The parser of a device's program: the shared options, then the device's own."""
    parser = Parser(
        prog=program,
        description=f"A vhost-user back-end: {(kind.__doc__ or '').partition(chr(10))[0]}",
        epilog="Without --socket-path and --fd, the socket comes from systemd (LISTEN_FDS).",
        formatter_class=Help,
        allow_abbrev=False,
        add_help=False,
    )
    parser.docstring = _docstring(kind)
    # In a group, where argparse does not try out how it will look: for that it loads half of a compressor.
    helping = parser.add_argument_group("options")
    helping.add_argument("-h", "--help", action="help", help="show this help message and exit")
    shared = parser.add_argument_group("shared options")
    shared.add_argument(
        "-s", "--socket-path", metavar="PATH", help="listen at PATH for one front-end at a time"
    )
    shared.add_argument("-f", "--fd", metavar="N", type=_fd, help="use this socket: listening, or connected")
    shared.add_argument(
        "--socket-mode", metavar="MODE", type=socket_mode, help="PATH's mode, octal, such as 0660"
    )
    shared.add_argument(
        "--socket-group", metavar="GROUP", type=socket_group, help="PATH's group, by name or number"
    )
    shared.add_argument(
        "--metrics",
        metavar="ADDR",
        type=_metrics,
        help="show metrics at [HOST]:PORT, /metrics, or at unix:PATH",
    )
    shared.add_argument(
        "--offer",
        metavar="FEATURES",
        type=features,
        default=DEFAULT_OFFER,
        help=f"offer these to the front-end: all, default, or some of {', '.join(CHOICES)}",
    )
    shared.add_argument("--sandbox", choices=SANDBOXES, default="default", help="default: %(default)s")
    shared.add_argument("--log-level", choices=LEVELS, help="default: info; in syslog, warning")
    shared.add_argument(
        "-c", "--print-capabilities", action="store_true", help="print them as JSON, and exit"
    )
    shared.add_argument("-V", "--version", action="version", version=f"%(prog)s {__version__}")
    kind.add_options(parser)
    if any(action.metavar == "SIZE" for action in parser._actions):
        parser.epilog = f"{parser.epilog} A SIZE is in bytes, or has a unit: 64K, 256MiB, 1.5G."
    return parser


def parse(kind: type[Device], command: CommandLine) -> argparse.Namespace:
    """The options; raises UsageError for wrong ones, ends the program after --help and --version."""
    options = make_parser(kind, command.program).parse_args(command.arguments)
    if options.socket_path is None and (options.socket_mode, options.socket_group) != (None, None):
        raise UsageError("--socket-mode and --socket-group need --socket-path")
    return options


def positive(text: str) -> int:
    """The type of an option that takes a number above 0."""
    if not text.isdecimal() or len(text) > MAX_DIGITS or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 of at most {MAX_DIGITS} digits")
    return int(text)


def size(text: str) -> int:
    """The type of an option that takes bytes: 65536, 64K, 64KiB, 1.5G; a unit is a power of 1024.

    A size is a whole number of bytes, above 0 and below 2**63. KB and the like are refused: to some people
    they are 1000 bytes.
    """
    found = re.fullmatch(r"([0-9]{1,18})(?:\.([0-9]{1,9}))?(?:([kmgtpe])(ib|b)?|b)?", text, re.IGNORECASE)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 65536, 64K, 256MiB or 1.5G")
    whole, fraction, unit, suffix = found.groups()
    if (suffix or "").lower() == "b":
        raise argparse.ArgumentTypeError(f"{text!r} has two meanings: say {text[:-1]} or {text[:-1]}iB")
    shift = 10 * ("kmgtpe".index(unit.lower()) + 1) if unit else 0
    fraction = fraction or ""
    number, rest = divmod(int(whole + fraction) << shift, int("1" + "0" * len(fraction)))
    if rest or not 0 < number <= MAX_SIZE:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: whole bytes, above 0 and below 8E")
    return number


def socket_mode(text: str) -> int:
    """The type of an option that takes a socket file's mode."""
    if not re.fullmatch(r"0?[0-7]{1,3}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is not an octal mode up to 777")
    return int(text, 8)


def socket_group(text: str) -> int:
    """The type of an option that takes a socket file's group."""
    try:
        return group_id(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def features(text: str) -> Offer:
    """The type of an option that takes names of features, with commas between them."""
    names = {name: [name] for name in CHOICES}
    names["all"] = list(CHOICES)
    names["default"] = [choice.name for choice in CHOICES.values() if choice.by_default]
    words = text.split(",")
    for word in words:
        if word not in names:
            near = nearest(word, names)
            hint = f": did you mean {near}?" if near else f"; there are {', '.join(names)}"
            raise argparse.ArgumentTypeError(f"{word!r} is no feature that can be chosen{hint}")
    return Offer(name for word in words for name in names[word])


def _docstring(kind: type[Device]) -> str:
    """That of the program's package, or of its only module."""
    module = kind.__module__
    return getattr(sys.modules.get(module.rpartition(".")[0] or module), "__doc__", None) or ""


def _fd(text: str) -> int:
    if not text.isdecimal() or len(text) > 10 or int(text) > MAX_FD:
        raise argparse.ArgumentTypeError(f"{text!r} is not the number of a file descriptor")
    return int(text)


def _metrics(text: str) -> Address:
    try:
        return parse_address(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
