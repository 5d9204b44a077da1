"""Ports as the command line has them: --port=[name=NAME,]KIND[=PATH][,OPTION...]."""

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import NamedTuple

from vhost_user_console.file_line import FileLine
from vhost_user_console.line import Line
from vhost_user_console.port import Port
from vhost_user_console.pty_line import PtyLine
from vhost_user_console.socket_line import SocketLine
from vhost_user_console.terminal_line import TerminalLine
from vhostd import UsageError, size, socket_group, socket_mode

MOST_PORTS = 31
MOST_NAME = 100  # bytes, so that no driver's buffer cuts a name
KEEP = 1 << 16  # bytes that are kept for whoever opens a console next

KINDS: Mapping[str, Sequence[str]] = {"pty": ("link",), "socket": ("mode", "group"), "file": (), "stdio": ()}
WITH_PATH = ("socket", "file")


class PortOption(NamedTuple):
    """A port that somebody wishes."""

    kind: str
    path: str = ""
    name: str = ""
    link: str | None = None
    keep: int | None = None
    mode: int | None = None
    group: int | None = None

    def open(self, number: int) -> Port:
        """Makes the port; raises SetupError."""
        keep = self.keep if self.keep is not None else 0 if self.name else KEEP
        return Port(number, self._open_line(), name=self.name, keep=keep)

    def _open_line(self) -> Line:
        match self.kind:
            case "pty":
                return PtyLine(self.link)
            case "socket":
                return SocketLine(self.path, mode=self.mode, group=self.group)
            case "file":
                return FileLine(self.path)
        return TerminalLine()


def port_option(text: str) -> PortOption:
    """The type of an option that takes a port. A comma in a value is written twice."""
    parts = [part.replace("\0", ",") for part in text.replace(",,", "\0").split(",")]
    given = dict(part.partition("=")[::2] for part in parts)
    kinds = [key for key in given if key in KINDS]
    if len(kinds) != 1 or len(given) != len(parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(KINDS)} with its options")
    kind = kinds[0]
    path = given.pop(kind)
    if bool(path) != (kind in WITH_PATH):
        raise argparse.ArgumentTypeError(f"{kind} needs a path" if not path else f"{kind} takes no value")
    taken: dict[str, Callable[[str], object]] = {"name": _name, "keep": _keep}
    taken |= {key: OPTIONS[key] for key in KINDS[kind]}
    if unknown := given.keys() - taken.keys():
        raise argparse.ArgumentTypeError(f"{kind} has no {', '.join(sorted(unknown))}")
    return PortOption(kind, path, **{key: taken[key](value) for key, value in given.items()})  # type: ignore[arg-type]


def open_ports(options: Sequence[PortOption]) -> list[Port]:
    """Makes the ports, or none: the first console is port 0, and the others count from 1.

    Raises SetupError, and UsageError for what does not fit together.
    """
    with ExitStack() as undo:
        ports = []
        for number, option in _numbered(options):
            ports.append(option.open(number))
            undo.callback(ports[-1].line.close)
        undo.pop_all()
    return ports


def _numbered(options: Sequence[PortOption]) -> Iterable[tuple[int, PortOption]]:
    names = [option.name for option in options if option.name]
    if len(set(names)) < len(names):
        raise UsageError("--port: two ports have one name")
    if sum(option.kind == "stdio" for option in options) > 1:
        raise UsageError("--port: stdio can be one port only")
    console = next((option for option in options if not option.name), None)
    rest = [option for option in options if option is not console]
    if len(rest) >= MOST_PORTS:
        raise UsageError(f"--port: there can be a console and {MOST_PORTS - 1} others at most")
    return [*([(0, console)] if console else []), *enumerate(rest, start=1)]


def _name(text: str) -> str:
    if not text.isprintable() or not 0 < len(text.encode()) <= MOST_NAME or "/" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is no name of up to {MOST_NAME} bytes")
    return text


def _keep(text: str) -> int:
    return 0 if text == "0" else size(text)


OPTIONS: Mapping[str, Callable[[str], object]] = {"link": str, "mode": socket_mode, "group": socket_group}
