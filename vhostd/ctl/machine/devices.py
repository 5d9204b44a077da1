"""The devices that were asked for: `disk.img,cache=direct,read-only` as a program's command line.

A value is divided at its commas. Two commas together are one that belongs to the text, as with QEMU.
"""

import re
import shutil
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vhostd.ctl.installation.programs import option_parser, programs_folder
from vhostd.ctl.machine.kinds import Kind
from vhostd.ctl.machine.mac import mac_of
from vhostd.errors import SetupError, UsageError

# These say where the program listens, which is for `vhostctl run` to say, or do something else than serve.
RESERVED = ("socket-path", "fd", "socket-mode", "socket-group", "print-capabilities")
QUIET = ("log-level", "warning")  # for the guest's console may be on the same terminal

Options = tuple[tuple[str, str | None], ...]


@dataclass(frozen=True)
class Wish:
    """A device that was asked for, by a text or by options. `origin` names it in errors.

    Relative paths are those of `folder`.
    """

    kind: Kind
    origin: str
    folder: Path
    text: str = ""
    options: Options = ()


@dataclass(frozen=True)
class Device:
    """A device, and the options of its program. `name` is unique in the machine."""

    kind: Kind
    name: str
    program: Path
    options: Options
    folder: Path
    event_socket: bool = False  # made in the machine's own folder
    terminal: bool = False  # one that a link in the machine's own folder leads to

    def __str__(self) -> str:
        return f"{self.kind.program} ({self.name})"

    def arguments(self, folder: Path) -> list[str]:
        """The program's arguments. `folder` is the machine's own."""
        return self._words(folder, self.kind.qemus)

    def check(self, parser: ArgumentParser) -> None:
        """Raises UsageError for what the program does not understand, be it for QEMU alone."""
        parser.parse_args(self._words(Path("/"), ()))

    def _words(self, folder: Path, without: Container[str]) -> list[str]:
        options = self.options
        if self.event_socket:
            options = (*options, ("event-socket", str(self.events(folder))))
        if self.terminal:
            link = str(self.link(folder)).replace(",", ",,")
            options = (*options, ("port", f"pty,link={link}"))
        given = [(name, value) for name, value in options if name not in without]
        return [f"--{name}" if value is None else f"--{name}={value}" for name, value in given]

    def socket(self, folder: Path) -> Path:
        """Where the program listens."""
        return folder / f"{self.name}.sock"

    def events(self, folder: Path) -> Path:
        """Where scripts may write events."""
        return folder / f"{self.name}.events"

    def link(self, folder: Path) -> Path:
        """What leads to its terminal."""
        return folder / f"{self.name}.pty"

    def value(self, option: str) -> str | None:
        """The last value of one of the program's options; None if it is not given."""
        return next((value for name, value in reversed(self.options) if name == option), None)


def devices(
    wishes: Iterable[Wish], parser_of: Callable[[str], ArgumentParser] = option_parser
) -> list[Device]:
    """The devices; raises UsageError for options that the programs do not understand."""
    count: Counter[str] = Counter()
    made = []
    for wish in wishes:
        kind = wish.kind
        made.append(_device(wish, f"{kind.name}{count[kind.name]}", parser_of(kind.program)))
        count[kind.name] += 1
    return made


def _device(wish: Wish, name: str, parser: ArgumentParser) -> Device:
    kind = wish.kind
    try:
        options = (*_options(wish, parser), *wish.options)
        _check_source(kind, options)
        names = {option for option, _ in options}
        if reserved := sorted(names & set(RESERVED)):
            raise UsageError(f"--{reserved[0]} is not for a program that `vhostctl run` starts")
        scripted = kind.events and not names & {kind.source, "evemu-path"}
        if scripted and "event-device" not in names:
            options = (*options, ("event-device", kind.name))
        if "mac" in kind.qemus and "mac" not in names:
            options = (*options, ("mac", mac_of(f"{name}={value}" for name, value in options[:1])))
        device = Device(
            kind=kind,
            name=name,
            program=_find(kind.program),
            options=options if "log-level" in names else (*options, QUIET),
            folder=wish.folder,
            event_socket=scripted and "event-socket" not in names,
            terminal=kind.terminal and kind.source not in names,
        )
        device.check(parser)
    except UsageError as error:
        raise UsageError(f"{wish.origin}: {error}") from None
    return device


def _options(wish: Wish, parser: ArgumentParser) -> Options:
    """The options of a text. Its first word is the source, unless it names an option of the program.

    The source may go on in later words, if that is its kind's way.
    """
    words = split(wish.text)
    kind = wish.kind
    known = parser._option_string_actions  # argparse has no public way to ask
    found: list[tuple[str, str | None]] = []
    for index, word in enumerate(words):
        name, equals, value = word.partition("=")
        if not word:
            raise UsageError("there is nothing before or after a comma; a comma of a name is written twice")
        if index and kind.in_parts and found[0][0] == kind.source and f"--{name}" not in known:
            found[0] = (kind.source, f"{found[0][1]},{word.replace(',', ',,')}")
        elif index or not kind.source or f"--{name}" in known:
            found.append((name, value if equals else None))
        else:
            found.append((kind.source, word))
    return tuple(found)


def _check_source(kind: Kind, options: Options) -> None:
    """Raises UsageError for a source that is a mistake."""
    for value in (value or "" for name, value in options if name == kind.source):
        for pattern, instead in kind.refused.items():
            if re.fullmatch(pattern, value):
                raise UsageError(instead.format(value))


def split(text: str) -> Sequence[str]:
    """The words between single commas."""
    if not text:
        return []
    return [word.replace("\0", ",") for word in text.replace(",,", "\0").split(",")]


def _find(program: str) -> Path:
    """A program beside this one, else in the PATH; raises SetupError."""
    beside = programs_folder() / program
    if beside.is_file():
        return beside
    if found := shutil.which(program):
        return Path(found).absolute()
    raise SetupError(f"{program} is neither in {beside.parent} nor in the PATH")
