"""Boots a Linux guest whose disk, keyboard, display and source of randomness are programs of vhostd.

It types on the keyboard, makes a file on the disk, and takes a picture of the screen.

Run it with contrib/demo.sh, which installs what this needs.
"""

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from evdev import ecodes

from tests.guest.backend import Backend, EventSocket
from tests.guest.guest import CommandFailed, Guest, GuestProblem
from tests.guest.kernel import KernelMissing
from tests.guest.machine import vhost_user_options
from tests.guest.modules import load_modules

TEXT = "Hello from vhostd\n"
SAMPLE_SIZE = 32
SHOWN_EVENTS = 10
DISK_SIZE = 64 << 20
MAKE_FILE = """set -e
mkfs.ext4 -q -L demo /dev/vda
mount -t ext4 /dev/vda /mnt
echo "Written by $(uname -sr), in the guest" >/mnt/hello.txt
umount /mnt
"""
SIGN_OF_LIFE = 5.0  # seconds
SCREENSHOT = Path(__file__).parents[1] / "build" / "demo-screen.png"
# On the console that the display shows, the end of the kernel's messages, and below it what is typed.
FILL_CONSOLE = "{ uname -srvm; dmesg | tail -n 15; echo; } >/dev/tty1"
READ_CONSOLE = "exec </dev/tty1; echo ready; exec cat"

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


FAILURES = (
    *(DemoFailed, GuestProblem, CommandFailed, KernelMissing),
    *(AssertionError, OSError, subprocess.CalledProcessError),
)


def say(text: str) -> None:
    """Prints one line of progress at once."""
    print(f"demo: {text}", flush=True)


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """Says what is waited for, and again and again that it still is."""
    say(text)
    over = threading.Event()

    def go_on() -> None:
        seconds = SIGN_OF_LIFE
        while not over.wait(SIGN_OF_LIFE):
            say(f"    ... {seconds:.0f} s")
            seconds += SIGN_OF_LIFE

    thread = threading.Thread(target=go_on)
    try:
        thread.start()  # Ctrl-C may come in the middle of it
        yield
    finally:
        over.set()
        if thread.ident is not None:
            thread.join()


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
    with closing(EventSocket(event_socket)) as connection:
        # Key by key: Linux keeps 64 events for a slow reader of an evdev node, and then drops them.
        for character in TEXT:
            events = key_events(character)
            connection.send(events)
            received += guest.call("wait_events", device=path, count=len(events))
    for event in received[:SHOWN_EVENTS]:
        say(f"    {path}: {event_name(event)}")
    say(f"    ... {len(received)} events; together they read {typed_text(received)!r}")
    if typed_text(received) != TEXT:
        raise DemoFailed("the guest received something else than was typed")


def show_disk(guest: Guest, image: Path, modules: Path) -> None:
    """Makes a file system with a file on the disk, in the guest, and reads that file on the host."""
    with waiting(f"the guest's disk: /dev/vda, which is {image.name} here; the guest makes a file on it"):
        load_modules(guest, modules, "crc32c_generic", "ext4")
        made = guest.call("run", argv=["sh", "-c", MAKE_FILE])
    if made["status"] != 0:
        raise DemoFailed(f"the guest could not: {made['output']}")
    command = ["/sbin/debugfs", "-R", "cat /hello.txt", str(image)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    say(f"    hello.txt, read on the host from {image.name}: {text.strip()!r}")
    if not text.startswith("Written by Linux"):
        raise DemoFailed("that is not what was written")


def show_random_numbers(guest: Guest) -> None:
    """Prints a sample of the guest's hardware random number generator."""
    generator = guest.call("rng_current")
    say(f"the guest's hardware random number generator: {generator}")
    if not generator.startswith("virtio_rng"):
        raise DemoFailed("that is not the virtio one")
    sample = guest.call("hwrng", count=SAMPLE_SIZE)
    say(f"    {SAMPLE_SIZE} bytes of /dev/hwrng in {sample['seconds'] * 1000:.1f} ms: {sample['data']}")


def show_screen(guest: Guest) -> None:
    """Saves what the guest's screen shows."""
    SCREENSHOT.parent.mkdir(exist_ok=True)
    guest.qmp.execute("screendump", {"filename": str(SCREENSHOT), "format": "png"})
    say(f"the guest's screen: {SCREENSHOT}")


def show(directory: Path, backends: dict[str, Backend], stack: ExitStack) -> None:
    """Runs the whole demo; adds the programs to `backends` as they start."""
    event_socket = directory / "events.sock"
    image = directory / "disk.img"
    image.touch()
    os.truncate(image, DISK_SIZE)
    start(backends, stack, "vhost-user-blk", directory, f"--blk-file={image}")
    start(backends, stack, "vhost-user-input", directory, f"--event-socket={event_socket}")
    start(backends, stack, "vhost-user-rng", directory)
    start(backends, stack, "vhost-user-gpu", directory)
    options = (vhost_user_options(f"{name}-pci", backend.path, name) for name, backend in backends.items())
    with waiting("booting a Linux guest under QEMU with these devices, about 15 s without KVM"):
        guest = stack.enter_context(Guest(options=[*chain.from_iterable(options)]))
    version = guest.call("read_file", path="/proc/sys/kernel/osrelease").strip()
    say(f"the guest is up after {guest.boot_seconds:.1f} s: Linux {version}")
    guest.call("run", argv=["sh", "-c", FILL_CONSOLE])
    console = guest.call("start", argv=["sh", "-c", READ_CONSOLE])
    guest.call("wait_output", pid=console, text="ready")
    show_disk(guest, image, directory / "modules")
    show_keyboard(guest, event_socket)
    guest.call("wait_output", pid=console, text=TEXT)
    show_random_numbers(guest)
    show_screen(guest)


def start(backends: dict[str, Backend], stack: ExitStack, name: str, *arguments: Any) -> None:
    """Starts a program as a service manager does."""
    backends[name] = stack.enter_context(Backend(name, *arguments))
    say(f"{name} runs (process {backends[name].process.pid})")


def main() -> int:
    """Runs the demo; the result is the exit status."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    backends: dict[str, Backend] = {}
    with tempfile.TemporaryDirectory(prefix="vhostd-demo-") as directory:
        try:
            with ExitStack() as stack:
                show(Path(directory), backends, stack)
        except FAILURES as error:
            print(f"demo: failed: {error}", file=sys.stderr)
            for name, backend in backends.items():
                print(f"--- {name} said:\n{backend.log()}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("\ndemo: interrupted", file=sys.stderr)
            return 128 + signal.SIGINT
    say("done: what was typed on the host arrived in the guest; its file and its picture arrived here")
    return 0


if __name__ == "__main__":
    sys.exit(main())
