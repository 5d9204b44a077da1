"""One image, our program and QEMU's: together where two of QEMU's would be, and refused where not."""

import os
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.blk.newer_qemu import qemu_img, qemu_io, tool
from tests.programs import Program, connect, executable, listening, listens_at

SIZE = 1 << 20
IN_USE = "another program has it in use"


class Kind(NamedTuple):
    """What one does with an image, and forbids: all that matters to others."""

    writes: bool = False
    forbids_writing: bool = False

    def goes_with(self, other: "Kind") -> bool:
        """Whether both may have the image."""
        return not ((self.writes and other.forbids_writing) or (other.writes and self.forbids_writing))


ALONE, READER = Kind(writes=True, forbids_writing=True), Kind(forbids_writing=True)
WRITER, ONLOOKER = Kind(writes=True), Kind()
OURS: dict[tuple[str, ...], Kind] = {
    (): ALONE,
    ("--read-only",): READER,
    ("--share-rw",): WRITER,
    ("--read-only", "--share-rw"): ONLOOKER,
    ("--cache=direct",): ALONE,
}


# --- QEMU's programs ------------------------------------------------------------------------------------


def interactive(*options: str) -> Callable[[Path], AbstractContextManager[bool]]:
    """qemu-io, which prompts once it has the image."""

    @contextmanager
    def start(image: Path) -> Iterator[bool]:
        command = qemu_io("-f", "raw", *options, str(image))
        with Program(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
            assert program.process.stdout is not None
            yield program.process.stdout.read(8) == b"qemu-io>" or has_failed(program)

    return start


def with_monitor(*command: str) -> Callable[[Path], AbstractContextManager[bool]]:
    """A program with a monitor, which is asked once everything is set up."""

    @contextmanager
    def start(image: Path) -> Iterator[bool]:
        path = image.with_name("monitor")
        path.unlink(missing_ok=True)
        arguments = [part.format(image=image, folder=image.parent) for part in command]
        with Program(arguments) as program:
            yield answers(program, path, b'"return"', b'{"execute": "qmp_capabilities"}') or has_failed(
                program
            )

    return start


def answers(program: Program, path: Path, word: bytes, question: bytes = b"") -> bool:
    """Whether it gets as far as to listen, to be asked and to say `word`. It may listen long before."""
    if not listens(program, path):
        return False
    heard = b""
    try:
        with connect(path) as sock:
            sock.sendall(question)
            while word not in heard and (data := sock.recv(4096)):
                heard += data
    except (ConnectionError, FileNotFoundError):
        return False
    return word in heard


def listens(program: Program, path: Path) -> bool:
    """Whether it does, or has ended."""
    while not listens_at(path):
        if program.process.poll() is not None:
            return False
        os.sched_yield()
    return True


def has_failed(program: Program) -> bool:
    """False, once it has ended because of a lock, and AssertionError for all else."""
    status, lines = program.ends()
    assert status == 1
    assert re.search(r'Failed to get (shared )?"write" lock', "".join(lines))
    return False


def once(*command: str) -> Callable[[Path], AbstractContextManager[bool]]:
    """A program that ends on its own."""

    @contextmanager
    def start(image: Path) -> Iterator[bool]:
        arguments = [part.format(image=image, folder=image.parent) for part in command]
        with Program(arguments) as program:
            yield program.wait() == 0 or has_failed(program)

    return start


def network(*options: str) -> Callable[[Path], AbstractContextManager[bool]]:
    """qemu-nbd, which greets once it has the image."""

    @contextmanager
    def start(image: Path) -> Iterator[bool]:
        path = image.with_name("nbd")
        path.unlink(missing_ok=True)
        command = [*tool("qemu-nbd"), "-f", "raw", "-t", "-k", str(path), *options, str(image)]
        with Program(command) as program:
            yield answers(program, path, b"NBDMAGIC") or has_failed(program)

    return start


def machine(drive: str = "", device: str = "") -> Callable[[Path], AbstractContextManager[bool]]:
    """QEMU with a disk of a guest that never runs."""
    return with_monitor(
        *("qemu-system-x86_64", "-machine", "q35", "-S", "-nodefaults", "-display", "none"),
        *("-qmp", "unix:{folder}/monitor,server=on,wait=off"),
        *("-drive", f"if=none,id=disk,format=raw,file={{image}}{drive}"),
        *("-device", f"virtio-blk-pci,drive=disk{device}"),
    )


def daemon(*, writable: bool) -> Callable[[Path], AbstractContextManager[bool]]:
    """qemu-storage-daemon, which exports the image."""
    state = ("on", "off") if writable else ("off", "on")
    return with_monitor(
        *tool("qemu-storage-daemon"),
        f"--blockdev=driver=file,node-name=file,filename={{image}},read-only={state[1]}",
        "--export=type=vhost-user-blk,id=disk,addr.type=unix,addr.path={folder}/export,node-name=file,"
        f"writable={state[0]}",
        *("--chardev", "socket,id=monitor,path={folder}/monitor,server=on,wait=off"),
        *("--monitor", "chardev=monitor"),
    )


class Peer(NamedTuple):
    """One of QEMU's programs; `start` tells whether it was let have the image."""

    kind: Kind
    start: Callable[[Path], AbstractContextManager[bool]]


PEERS = {
    "qemu-io": Peer(WRITER, interactive()),
    "qemu-io -r": Peer(ONLOOKER, interactive("-r")),
    "qemu-io -U": Peer(ONLOOKER, interactive("-r", "-U")),
    "qemu-storage-daemon": Peer(WRITER, daemon(writable=True)),
    "qemu-storage-daemon read-only": Peer(ONLOOKER, daemon(writable=False)),
    "qemu-nbd": Peer(WRITER, network()),
    "qemu-nbd -r": Peer(ONLOOKER, network("-r")),
    "guest": Peer(ALONE, machine()),
    "guest read-only": Peer(READER, machine(",readonly=on")),
    "guest share-rw": Peer(WRITER, machine("", ",share-rw=on")),
    "guest read-only share-rw": Peer(ONLOOKER, machine(",readonly=on", ",share-rw=on")),
}
# What ends at once, and so is never first.
ONCE = {
    "qemu-img bench": Peer(ONLOOKER, once(*qemu_img("bench", "-f", "raw", "-c", "99", "{image}"))),
    "qemu-img bench -w": Peer(WRITER, once(*qemu_img("bench", "-w", "-f", "raw", "-c", "99", "{image}"))),
    "qemu-img info": Peer(ONLOOKER, once(*qemu_img("info", "-f", "raw", "{image}"))),
    "qemu-img info -U": Peer(ONLOOKER, once(*qemu_img("info", "-U", "{image}"))),
    "qemu-img convert -U": Peer(
        ONLOOKER, once(*qemu_img("convert", "-U", "-f", "raw", "-O", "raw", "{image}", "{folder}/copy"))
    ),
    "qemu-img resize": Peer(WRITER, once(*qemu_img("resize", "-q", "-f", "raw", "{image}", "+1M"))),
}


# --- Ours -----------------------------------------------------------------------------------------------


def command(image: Path, *options: str) -> list[str]:
    return [executable("vhost-user-blk"), f"--blk-file={image}", *options]


def locks(image: Path) -> set[int]:
    """The bytes of the image that somebody holds a lock on."""
    inode = f":{image.stat().st_ino}"
    lines = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    # number, OFDLCK, ADVISORY, READ, pid, device:inode, first, last
    spans = [line[-2:] for line in lines if line[-3].endswith(inode)]
    return {byte for first, last in spans for byte in range(int(first), int(last) + 1)}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    image = tmp_path / "disk.img"
    image.write_bytes(os.urandom(SIZE))
    return image


def ours_goes(image: Path, options: Sequence[str], *, expected: bool) -> None:
    """Starts the program, which serves or ends with one line."""
    path = image.with_name("ours")
    if expected:
        with listening(command(image, *options), path) as program:
            program.stop()
        return
    with Program([*command(image, *options), f"--socket-path={path}"]) as program:
        status, lines = program.ends()
    assert status == 1
    assert len(lines) == 1
    assert lines[0].startswith(f"vhost-user-blk: error: --blk-file={image}: {IN_USE}")


@pytest.mark.parametrize("options", OURS, ids=lambda options: " ".join(options) or "writable")
@pytest.mark.parametrize("name", [*PEERS, *ONCE])
def test_ours_first(image: Path, options: tuple[str, ...], name: str) -> None:
    peer = (PEERS | ONCE)[name]
    with listening(command(image, *options), image.with_name("ours")) as program:
        with peer.start(image) as is_let:
            assert is_let == OURS[options].goes_with(peer.kind)
        program.stop()
    with peer.start(image) as is_let:
        assert is_let


@pytest.mark.parametrize("name", PEERS)
def test_theirs_first(image: Path, name: str) -> None:
    peer = PEERS[name]
    with peer.start(image) as is_let:
        assert is_let
        for options, kind in OURS.items():
            ours_goes(image, options, expected=kind.goes_with(peer.kind))
    for options in OURS:
        ours_goes(image, options, expected=True)


@pytest.mark.parametrize(
    ("options", "drive", "device"),
    [
        ((), "", ""),
        (("--read-only",), ",readonly=on", ""),
        (("--share-rw",), "", ",share-rw=on"),
        (("--read-only", "--share-rw"), ",readonly=on", ",share-rw=on"),
    ],
)
def test_the_same_bytes_are_locked(image: Path, options: Sequence[str], drive: str, device: str) -> None:
    with machine(drive, device)(image) as is_let:
        assert is_let
        wanted = locks(image)
    with listening(command(image, *options), image.with_name("ours")) as program:
        assert locks(image) == wanted
        program.stop()


def test_no_locking(image: Path) -> None:
    """Neither asks the other; whoever says that knows why."""
    with machine()(image) as is_let:
        assert is_let
        before = locks(image)
        with listening(command(image, "--locking=off"), image.with_name("ours")) as program:
            assert locks(image) == before
            program.stop()


@pytest.mark.parametrize(
    ("drive", "device", "advice"),
    [
        ("", "", ""),
        (",readonly=on", "", ", and lets nobody else write: --read-only goes with that"),
        ("", ",share-rw=on", ", and writes to it: --share-rw lets both, if their guests know of each other"),
    ],
)
def test_the_advice(image: Path, drive: str, device: str, advice: str) -> None:
    """As it is read on the screen, with a guest of QEMU's in the way."""
    with (
        machine(drive, device)(image),
        Program(command(image, f"--socket-path={image.with_name('ours')}")) as program,
    ):
        assert program.ends()[1] == [f"vhost-user-blk: error: --blk-file={image}: {IN_USE}{advice}"]


def test_a_killed_program_is_followed_at_once(image: Path) -> None:
    """However often: its lock may live a little longer than it does."""
    for _ in range(3):
        with listening(command(image), image.with_name("ours")) as program:
            program.process.kill()
            program.wait()
        image.with_name("ours").unlink()
    ours_goes(image, (), expected=True)
