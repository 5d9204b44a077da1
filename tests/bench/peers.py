"""Other projects' back-end programs, in C and in Rust, that keep to the same conventions."""

import json
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.programs import Program, connect, connected, get_features

DESCRIPTIONS = Path("/usr/share/qemu/vhost-user")  # what each program's package says of it


def reply_time(command: Iterable[str]) -> float:
    """Milliseconds from exec with --fd, a connected socket, until the reply to GET_FEATURES is there."""
    start = time.perf_counter()
    with connected([*command], stderr=subprocess.DEVNULL, cwd="/") as (_, sock):
        get_features(sock)
        return (time.perf_counter() - start) * 1000


def reply_time_listening(command: Iterable[str]) -> float:
    """As `reply_time`, with --fd a listening socket."""
    with TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        path = Path(folder, "vhost.sock")
        listener.bind(str(path))
        listener.listen()
        start = time.perf_counter()
        arguments = [*command, f"--fd={listener.fileno()}"]
        with (
            Program(arguments, fds=[listener.fileno()], stderr=subprocess.DEVNULL, cwd="/"),
            connect(path) as sock,
        ):
            get_features(sock)
            return (time.perf_counter() - start) * 1000


@dataclass(frozen=True)
class Peer:
    """A program, what it is written in, the Debian package that has it, and what it takes to serve."""

    name: str
    path: Path
    language: str = "unknown language"
    package: str = ""
    options: tuple[str, ...] = ()
    launch: Callable[[Iterable[str]], float] | None = None  # None if it wants more than a socket to serve

    def __str__(self) -> str:
        return f"{self.name}, {self.language}"

    @property
    def probe(self) -> list[str]:
        """What a management program runs to learn what it can do."""
        return [str(self.path), "--print-capabilities"]

    @property
    def command(self) -> list[str]:
        """What serves, once it is given a socket."""
        return [str(self.path), *self.options]


KNOWN = (
    Peer(
        "QEMU's vhost-user-gpu", Path("/usr/lib/qemu/vhost-user-gpu"), "C", "qemu-system-gui", (), reply_time
    ),
    Peer(
        "virtiofsd",
        Path("/usr/libexec/virtiofsd"),
        "Rust",
        "virtiofsd",
        ("--shared-dir=/usr/share", "--sandbox=none"),
        reply_time_listening,
    ),
    Peer("passt", Path("/usr/bin/passt"), "C", "passt"),
)


def find(others: Iterable[Path]) -> tuple[list[Peer], list[Peer]]:
    """Those that are on this machine, also what descriptions name; and those known that are not.

    `others` are used in place of known ones of the same file name.
    """
    places = {path.name: path for path in others}
    known = [replace(peer, path=places.get(peer.path.name, peer.path)) for peer in KNOWN]
    there = [peer for peer in known if _is_there(peer)]
    paths = {peer.path for peer in KNOWN}
    described = (Peer(path.name, path) for path in _described() if path not in paths)
    there += [peer for peer in described if _is_there(peer)]
    return there, [peer for peer in known if peer not in there]


def _is_there(peer: Peer) -> bool:
    """Whether it can be measured. Debian 12's passt, for one, is no back-end yet."""
    if not peer.path.exists():
        return False
    return not subprocess.run(peer.probe, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode


def _described() -> Iterator[Path]:
    for file in sorted(DESCRIPTIONS.glob("*.json")):
        if not file.name.startswith("50-vhostd-"):
            yield Path(json.loads(file.read_text())["binary"])
