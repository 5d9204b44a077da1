"""--metrics as users of the programs meet it: from the command line, over TCP and at a path."""

import asyncio
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from tests.conftest import Run
from tests.program.metrics.scraping import GET, Place, connected, scrape
from tests.programs import PATIENCE, Program, connect, executable, get_features, listening
from vhostd import __version__
from vhostd.frontend import Frontend, SharedMemory

Command = list[str]

RNG = executable("vhost-user-rng")
INPUT = executable("vhost-user-input")
GPU = executable("vhost-user-gpu")
BLK = executable("vhost-user-blk")
CONSOLE = executable("vhost-user-console")
ERR_UNSPEC = 0x1200  # of virtio-gpu (virtio 1.3, 5.7.6.7)
REQUESTS = 500
UNSUPP = b"\2"  # of virtio-blk (virtio 1.3, 5.2.6)
DEVICES = {RNG: "rng", INPUT: "input", GPU: "gpu", BLK: "block", CONSOLE: "console"}


@pytest.fixture(params=DEVICES, ids=["rng", "input", "gpu", "blk", "console"])
def command(request: pytest.FixtureRequest, tmp_path: Path) -> Command:
    """The command line of each program, without a socket."""
    options = {BLK: ["--ram=1M"], INPUT: [f"--event-socket={tmp_path / 'events'}"]}
    return [request.param, *options.get(request.param, [])]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where front-ends connect."""
    return tmp_path / "vhost.sock"


@contextmanager
def measured(command: Sequence[str], path: Path, where: str = ":0") -> Iterator[tuple[Program, Place]]:
    """A program that listens at `path`, and the place of its metrics, as its log tells it."""
    with listening([*command, f"--metrics={where}"], path) as program:
        said = program.hear("metrics are at ")
        found = re.search(r"metrics are at (?:http://\[?(.+?)\]?:(\d+)/metrics|(.+), path /metrics)$", said)
        assert found, said
        yield program, found[3] or (found[1], int(found[2]))


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


def complaint(command: Sequence[str]) -> tuple[int, str]:
    """The status of a program that cannot start, and the only line on its stderr."""
    with Program(command) as program:
        status, lines = program.ends()
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"{Path(command[0]).name}: error: ")
    return status, lines[0]


# --- Where they are -------------------------------------------------------------------------------------


def test_every_program_shows_its_metrics(command: Command, path: Path) -> None:
    with measured(command, path) as (program, place):
        page = scrape(place)
        assert page.status == 200
        about = {"program": Path(command[0]).name, "device": DEVICES[command[0]], "version": __version__}
        assert page.value("vhost_user_build_info", **about) == 1
        assert page.value("vhost_user_front_end_connected") == 0
        with connect(path) as sock:
            get_features(sock)
            assert scrape(place).value("vhost_user_front_end_connected") == 1
        with connect(path) as sock:
            get_features(sock)
            assert scrape(place).value("vhost_user_front_end_connections_total") == 2
        program.stop()


def test_what_the_kernel_says_of_the_process(command: Command, path: Path) -> None:
    """In its sandbox, too."""
    with measured(command, path) as (program, place):
        page = scrape(place)
        resident = page.value("process_resident_memory_bytes")
        assert resident is not None
        assert resident / 1024 == pytest.approx(program.resident(), rel=0.2)
        assert page.value("process_open_fds")
        # Else the sandbox's rule would be lost with what the kernel keeps of the folder for a while.
        assert str(program.proc) in program.fds().values()


def test_at_a_path(command: Command, path: Path, tmp_path: Path) -> None:
    where = tmp_path / "metrics.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(where))
    with measured(command, path, f"unix:{where}") as (program, place):
        assert place == str(where)
        assert scrape(place).status == 200
        other = tmp_path / "other"
        status, line = complaint([RNG, f"--socket-path={other}", f"--metrics=unix:{where}"])
        assert (status, str(where) in line) == (1, True)
        assert scrape(place).status == 200
        program.stop()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("where", "host"), [("127.0.0.1:0", "127.0.0.1"), ("localhost:0", None), (":0", None)]
)
def test_at_a_host(path: Path, where: str, host: str | None) -> None:
    with measured([RNG], path, where) as (_, place):
        assert scrape(place).status == 200
        assert host is None or place[0] == host


def test_at_an_ipv6_address(path: Path) -> None:
    if has_ipv6():
        with measured([RNG], path, "[::1]:0") as (_, place):
            assert place[0] == "::1"
            assert scrape(place).status == 200
    else:
        status, line = complaint([RNG, f"--socket-path={path}", "--metrics=[::1]:0"])
        assert (status, "cannot listen at [::1]:0" in line) == (1, True)


def test_a_port_that_is_taken(command: Command, path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, line = complaint([*command, f"--socket-path={path}", f"--metrics=:{port}"])
    assert (status, f"127.0.0.1:{port}" in line) == (1, True)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("where", ["", "9100", "host:x", "[::1]", "unix:", ":70000"])
def test_an_address_that_is_none(path: Path, where: str) -> None:
    status, line = complaint([RNG, f"--socket-path={path}", f"--metrics={where}"])
    assert (status, "--metrics" in line) == (2, True)


def test_without_the_library(path: Path) -> None:
    code = (
        "import sys; sys.modules['prometheus_client'] = None; sys.argv[0] = 'vhost-user-rng'; "
        "import vhost_user_rng; sys.exit(vhost_user_rng.main())"
    )
    command = [sys.executable, "-c", code, f"--socket-path={path}", "--metrics=:0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 1
    assert re.fullmatch(r"vhost-user-rng: error: --metrics needs prometheus_client, .*\n", done.stderr)


def test_nobody_else_loads_the_library(path: Path) -> None:
    """And the rings of a program without metrics are those that do not count."""
    code = (
        "import sys, vhost_user_rng; vhost_user_rng.main(); "
        "print(*(name for name in sys.modules if 'prometheus' in name or 'metrics' in name))"
    )
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [sys.executable, "-c", code, f"--fd={theirs.fileno()}"]
        with Program(command, fds=[theirs.fileno()], stdout=subprocess.PIPE) as program:
            theirs.close()
            ours.close()
            out, _ = program.process.communicate(timeout=PATIENCE)
    assert out.decode().split() == ["vhostd.program.metrics", "vhostd.program.metrics.address"]


# --- What they say --------------------------------------------------------------------------------------


async def _work(path: Path, index: int, requests: Sequence[tuple[bytes, int]]) -> list[bytes]:
    """Sends requests to a ring; what was answered."""
    frontend = await Frontend.connect(str(path))
    with closing(SharedMemory(1 << 20)) as memory, closing(frontend):
        await frontend.negotiate()
        await frontend.share(memory)
        with closing(await frontend.start(memory, index)) as queue:
            return [await queue.request(data, room) for data, room in requests]


def test_errors_of_a_disk(path: Path, run_async: Run) -> None:
    read, unknown, beyond = (
        kind.to_bytes(8, "little") + sector.to_bytes(8, "little")
        for kind, sector in ((0, 0), (99, 0), (0, 1 << 40))
    )
    answers: list[bytes] = []

    async def main() -> None:
        answers.extend(await _work(path, 1, [(read, 513), (unknown, 1), (beyond, 513)]))

    with measured([BLK, "--ram=1M"], path) as (_, place):
        run_async(main)
        page = scrape(place)
    assert answers[0] == bytes(513)
    assert answers[1] == UNSUPP
    assert page.value("vhost_user_requests_total", ring="1") == 3
    assert page.value("vhost_user_errors_total", ring="1") == 2
    assert page.value("vhost_user_read_bytes_total", ring="1") == 48
    assert page.value("vhost_user_written_bytes_total", ring="1") == 513 + 1 + 513
    assert page.value("vhost_user_requests_total", ring="0") is None


def test_errors_of_a_disk_that_fails(path: Path, tmp_path: Path, run_async: Run) -> None:
    """What the host cannot read is an error as well."""
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    answers: list[bytes] = []

    async def main() -> None:
        os.truncate(image, 4096)
        head = bytes(8) + (100).to_bytes(8, "little")
        answers.extend(await _work(path, 0, [(head, 513)]))

    with measured([BLK, f"--blk-file={image}"], path) as (_, place):
        run_async(main)
        page = scrape(place)
    assert answers[0][-1] == 1
    assert page.value("vhost_user_errors_total", ring="0") == 1


def test_errors_of_a_display(path: Path, run_async: Run) -> None:
    answers: list[bytes] = []

    async def main() -> None:
        display_info = (0x100).to_bytes(4, "little").ljust(24, b"\0")
        answers.extend(await _work(path, 0, [(display_info, 408), (bytes(24), 24)]))

    with measured([GPU], path) as (_, place):
        run_async(main)
        page = scrape(place)
    assert int.from_bytes(answers[1][:4], "little") == ERR_UNSPEC
    assert page.value("vhost_user_requests_total", ring="0") == 2
    assert page.value("vhost_user_errors_total", ring="0") == 1


# --- Those who mean harm --------------------------------------------------------------------------------


def silence(place: Place, over: threading.Event) -> None:
    with connected(place):
        over.wait()


def garbage(place: Place, over: threading.Event) -> None:
    while not over.is_set():
        with suppress(OSError), connected(place) as sock:
            sock.sendall(os.urandom(1 << 16))


def greed(place: Place, over: threading.Event) -> None:
    while not over.is_set():
        with suppress(OSError):
            scrape(place)


def haste(place: Place, over: threading.Event) -> None:
    while not over.is_set():
        with suppress(OSError), connected(place) as sock:
            sock.sendall(GET)


@pytest.mark.parametrize("way", [silence, garbage, greed, haste])
def test_a_crowd_of_scrapers_does_not_hurt_the_device(
    path: Path, run_async: Run, way: Callable[[Place, threading.Event], None]
) -> None:
    async def main() -> None:
        frontend = await Frontend.connect(str(path))
        with closing(SharedMemory(1 << 20)) as memory, closing(frontend):
            await frontend.negotiate()
            await frontend.share(memory)
            with closing(await frontend.start(memory)) as queue:
                for _ in range(REQUESTS):
                    await asyncio.wait_for(queue.request(room=16), PATIENCE)

    with measured([RNG], path) as (program, place):
        over = threading.Event()
        crowd = [threading.Thread(target=way, args=(place, over)) for _ in range(20)]
        try:
            for one in crowd:
                one.start()
            run_async(main)
            fds = len(program.fds())
        finally:
            over.set()
            for one in crowd:
                one.join()
        assert fds < 60
        assert scrape(place).value("vhost_user_requests_total", ring="0") == REQUESTS
        program.stop()


def test_a_scraper_does_not_delay_the_end(command: Command, path: Path) -> None:
    with measured(command, path) as (program, place), connected(place) as silent, connected(place) as slow:
        slow.sendall(b"GET ")
        scrape(place)
        assert program.stop() < PATIENCE
        assert silent.recv(1) == b""
    assert list(path.parent.iterdir()) == []
