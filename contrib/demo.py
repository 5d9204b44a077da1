"""Boots a Linux guest with vhost-user-input and vhost-user-rng, types into it and reads its random numbers.

Run it with contrib/demo.sh, which installs what this needs.
"""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from evdev import ecodes

from tests.guest.guest import CommandFailed, Guest, GuestProblem
from tests.guest.kernel import KernelMissing

TEXT = "Hello from vhostd\n"
SAMPLE_SIZE = 32
SHOWN_EVENTS = 10
STOP_TIMEOUT = 10.0

RELEASED, PRESSED = 0, 1
SYN = (ecodes.EV_SYN, ecodes.SYN_REPORT, 0)
SPECIAL_KEYS = {" ": ecodes.KEY_SPACE, "\n": ecodes.KEY_ENTER}
CHARACTERS = {
    **{getattr(ecodes, f"KEY_{letter.upper()}"): letter for letter in "abcdefghijklmnopqrstuvwxyz"},
    **{key: character for character, key in SPECIAL_KEYS.items()},
}
KEYS = {character: key for key, character in CHARACTERS.items()}

Event = Sequence[int]


class DemoFailed(Exception):
    """The demo did not show what it should; the message is for the person at the terminal."""


class Program:
    """A vhostd program, started as a launcher does: it inherits one end of a socket pair.

    `socket` is the other end, for QEMU. Leaving the `with` block ends the program.
    """

    def __init__(self, name: str, directory: Path, options: Sequence[str] = ()) -> None:
        self.name = name
        self._log = directory / f"{name}.log"
        self.socket, own = socket.socketpair()
        path = Path(sys.executable).with_name(name)
        if not path.exists():
            raise DemoFailed(f"there is no {path}: run contrib/setup.sh")
        with own, self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [path, f"--fd={own.fileno()}", *options], pass_fds=[own.fileno()], stdout=log, stderr=log
            )
        say(f"{name} runs (process {self._process.pid})")

    def __enter__(self) -> "Program":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def log(self) -> str:
        """What the program has printed."""
        return self._log.read_text(errors="replace").strip()

    def qemu_options(self, device: str) -> list[str]:
        """The QEMU options for a device that this program is the back-end of."""
        chardev = f"socket,id={self.name},fd={self.socket.fileno()}"
        return ["-chardev", chardev, "-device", f"{device},chardev={self.name}"]


def say(text: str) -> None:
    """Prints one line of progress at once."""
    print(f"demo: {text}", flush=True)


def key_events(character: str) -> list[Event]:
    """The events of typing a character."""
    keys = [KEYS[character.lower()]]
    if character.isupper():
        keys.insert(0, ecodes.KEY_LEFTSHIFT)
    strokes = [(key, PRESSED) for key in keys] + [(key, RELEASED) for key in reversed(keys)]
    return [event for key, value in strokes for event in ((ecodes.EV_KEY, key, value), SYN)]


def typed_text(events: Sequence[Event]) -> str:
    """The text that these events type."""
    text = ""
    shift = False
    for kind, code, value in events:
        if kind == ecodes.EV_KEY and code == ecodes.KEY_LEFTSHIFT:
            shift = value != RELEASED
        elif kind == ecodes.EV_KEY and value == PRESSED:
            character = CHARACTERS.get(code, "?")
            text += character.upper() if shift else character
    return text


def evemu_line(event: Event) -> str:
    """An event in evemu's notation."""
    kind, code, value = event
    return f"E: 0.000000 {kind:04x} {code:04x} {value}\n"


def event_name(event: Event) -> str:
    """An event in words."""
    kind, code, value = event
    name = ecodes.bytype[kind].get(code, str(code))
    return f"{ecodes.EV[kind]} {name if isinstance(name, str) else name[0]} {value}"


def show_keyboard(guest: Guest, event_socket: Path) -> None:
    """Types on the virtual keyboard and prints what the guest received."""
    devices = guest.call("input_devices")
    if len(devices) != 1:
        raise DemoFailed(f"the guest has {len(devices)} input devices instead of one: {devices}")
    path = guest.call("record", device=devices[0]["path"])
    say(f"the guest's keyboard: {devices[0]['name']!r} at {path}")
    say(f"typing {TEXT!r} into {event_socket.name}")
    received: list[Event] = []
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(event_socket))
        # Key by key: Linux keeps 64 events for a slow reader of an evdev node, and then drops them.
        for character in TEXT:
            events = key_events(character)
            connection.sendall("".join(map(evemu_line, events)).encode())
            received += guest.call("wait_events", device=path, count=len(events))
    for event in received[:SHOWN_EVENTS]:
        say(f"    {path}: {event_name(event)}")
    say(f"    ... {len(received)} events; together they read {typed_text(received)!r}")
    if typed_text(received) != TEXT:
        raise DemoFailed("the guest received something else than was typed")


def show_random_numbers(guest: Guest) -> None:
    """Prints a sample of the guest's hardware random number generator."""
    generator = guest.call("rng_current")
    say(f"the guest's hardware random number generator: {generator}")
    if not generator.startswith("virtio_rng"):
        raise DemoFailed("that is not the virtio one")
    sample = guest.call("hwrng", count=SAMPLE_SIZE)
    say(f"    {SAMPLE_SIZE} bytes of /dev/hwrng in {sample['seconds'] * 1000:.1f} ms: {sample['data']}")


def show(directory: Path, programs: list[Program], stack: ExitStack) -> None:
    """Runs the whole demo; adds the programs to `programs` as they start."""
    event_socket = directory / "events.sock"
    keyboard = stack.enter_context(Program("vhost-user-input", directory, [f"--event-socket={event_socket}"]))
    programs.append(keyboard)
    random_source = stack.enter_context(Program("vhost-user-rng", directory))
    programs.append(random_source)
    say("booting a Linux guest under QEMU with both devices")
    guest = Guest(
        options=[
            *keyboard.qemu_options("vhost-user-input-pci"),
            *random_source.qemu_options("vhost-user-rng-pci"),
        ],
        pass_fds=[program.socket.fileno() for program in programs],
    )
    stack.enter_context(guest)
    version = guest.call("read_file", path="/proc/sys/kernel/osrelease").strip()
    say(f"the guest is up after {guest.boot_seconds:.1f} s: Linux {version}")
    show_keyboard(guest, event_socket)
    show_random_numbers(guest)


def main() -> int:
    """Runs the demo; the result is the exit status."""
    programs: list[Program] = []
    with tempfile.TemporaryDirectory(prefix="vhostd-demo-") as directory:
        try:
            with ExitStack() as stack:
                show(Path(directory), programs, stack)
        except (DemoFailed, GuestProblem, CommandFailed, KernelMissing, OSError) as error:
            print(f"demo: failed: {error}", file=sys.stderr)
            for program in programs:
                print(f"--- {program.name} said:{os.linesep}{program.log()}", file=sys.stderr)
            return 1
    say("done: what was typed on the host arrived in the guest, and its random numbers come from the host")
    return 0


if __name__ == "__main__":
    sys.exit(main())
