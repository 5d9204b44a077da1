"""The words of QEMU's command line, as options and their values."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from vhostd.ctl.machine.devices import split
from vhostd.errors import UsageError

# The options without a value. All others take one.
FLAGS = frozenset(
    [
        *("h", "help", "version", "audio-help", "snapshot", "usb", "nographic", "curses"),
        *("full-screen", "no-quit", "alt-grab", "ctrl-grab", "win2k-hack", "no-fd-bootchk"),
        *("no-acpi", "no-hpet", "no-kvm", "enable-kvm", "enable-fips", "S", "s", "singlestep"),
        *("one-insn-per-tb", "no-reboot", "no-shutdown", "daemonize", "nodefaults"),
        *("no-user-config", "nouserconfig", "mem-prealloc", "preconfig", "only-migratable"),
        *("xen-attach", "xen-domid-restrict", "enable-sync-profile", "perfmap", "jitdump"),
        *("old-param", "semihosting", "async-teardown", "portrait", "sdl"),
    ]
)
OURS = frozenset(["print", "libvirt"])  # which QEMU has not
SAME = {"M": "machine"}  # other names of options


@dataclass(frozen=True)
class Words:
    """A command line: what comes before QEMU's own arguments, which ends with QEMU's program, and those."""

    start: tuple[str, ...]
    rest: tuple[str, ...]

    @property
    def program(self) -> str:
        """QEMU's program."""
        return self.start[-1]

    def options(self) -> Iterator[tuple[str, str]]:
        """The options without dashes, and their values; raises UsageError for one that lacks its value."""
        words = iter(self.rest)
        for word in words:
            if not word.startswith("-") or word == "-":
                yield "hda", word  # as QEMU takes it
                continue
            name = word.removeprefix("-").removeprefix("-")
            if name in OURS:
                raise UsageError(f"{word} is an option of vhostctl: it goes before QEMU's program")
            value = "" if name in FLAGS else next(words, None)
            if value is None:
                raise UsageError(f"{word}: QEMU wants a value after it")
            yield SAME.get(name, name), value

    def values(self, option: str) -> list[str]:
        """All values of an option."""
        return [value for name, value in self.options() if name == option]

    def has(self, *options: str) -> bool:
        """Whether one of these options is given."""
        return any(name in options for name, _ in self.options())

    def property(self, option: str, name: str, implied: str = "") -> str | None:
        """The last value of a property in all values of an option, which QEMU merges; None without one."""
        found = [properties(value, implied).get(name) for value in self.values(option)]
        return next((value for value in reversed(found) if value is not None), None)


def words(arguments: tuple[str, ...]) -> Words:
    """Finds QEMU's program, before which another one may start it, such as nice(1); raises UsageError."""
    if not arguments:
        raise UsageError("QEMU's command line is missing: ... -- qemu-system-x86_64 -m 2G")
    if arguments[0].startswith("-"):
        raise UsageError(f"{arguments[0]}: first name QEMU's program: ... -- qemu-system-x86_64 -m 2G")
    at = next((index for index, word in enumerate(arguments) if is_qemu(word)), 0)
    return Words(arguments[: at + 1], arguments[at + 1 :])


def is_qemu(word: str) -> bool:
    """Whether a program is QEMU, by its name."""
    name = os.path.basename(word)
    return name.startswith(("qemu-system-", "qemu-kvm")) or name == "kvm"


def properties(value: str, implied: str = "") -> Mapping[str, str]:
    """The properties in a value such as `q35,smm=off`, or in JSON. `implied` names the first."""
    if value.startswith("{"):
        try:
            document = json.loads(value)
        except ValueError:
            return {}  # QEMU says so
        return {name: _text(each) for name, each in document.items()}
    found = {}
    for index, word in enumerate(split(value)):
        name, equals, text = word.partition("=")
        if not equals and index == 0 and implied:
            name, text = implied, word
        found[name] = text if equals or index == 0 else "on"
    return found


def _text(value: object) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)
