"""The program itself: what it leaves behind of its ports, under its sandbox, and its own terminal."""

import asyncio
import fcntl
import os
import pty
import select
import struct
import termios
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.conftest import Run
from tests.devices.vhost_user_console.driven import opened
from tests.programs import Program, executable, listening
from vhostd.frontend import Frontend, SharedMemory
from vhostd.frontend.drivers.console import ConsoleDriver, read_config

CONSOLE = executable("vhost-user-console")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the program listens."""
    return tmp_path / "console.sock"


class OwnTerminal:
    """What the program is started at, and the program."""

    def __init__(self, screen: int, keyboard: int, program: Program) -> None:
        self.screen = screen  # what a person sees and types
        self.keyboard = keyboard  # what the program has as stdin
        self.program = program

    def hang_up(self) -> None:
        """The window is closed."""
        with open(os.devnull) as nothing:
            os.dup2(nothing.fileno(), self.screen)


@contextmanager
def at_a_terminal(path: Path) -> Iterator[OwnTerminal]:
    """The program at a terminal of its own, which is its controlling one."""
    screen, keyboard = pty.openpty()
    # A shell that has the terminal, in which the program is in the foreground.
    code = (
        "import os, sys, fcntl, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    command = [os.environ.get("PYTHON", "/usr/bin/python3"), "-c", code, CONSOLE, "--port=stdio"]
    try:
        with Program([*command, f"--socket-path={path}"], stdin=keyboard) as program:
            program.hear("port 0 is this terminal")
            yield OwnTerminal(screen, keyboard, program)
    finally:
        os.close(screen)
        os.close(keyboard)


def test_links_and_sockets_go_with_it(path: Path, tmp_path: Path) -> None:
    ports = (f"pty,link={tmp_path}/link", f"name=a,socket={tmp_path}/socket,mode=0600")
    with listening([CONSOLE, *(f"--port={port}" for port in ports)], path) as program:
        assert os.readlink(tmp_path / "link").startswith("/dev/pts/")
        assert (tmp_path / "socket").stat().st_mode & 0o777 == 0o600
        with opened(tmp_path / "link") as terminal:
            mode = termios.tcgetattr(terminal.fd)
            assert not mode[3] & (termios.ICANON | termios.ECHO)
        program.stop()
    assert os.listdir(tmp_path) == []


def test_its_own_terminal(path: Path, run_async: Run) -> None:
    """It is raw, tells of its size, ends the program by Control-], and is as before then."""

    async def main(here: OwnTerminal) -> None:
        memory = SharedMemory(1 << 20)
        with closing(memory), closing(await Frontend.connect(str(path))) as frontend:
            await frontend.negotiate()
            await frontend.share(memory)
            with closing(await ConsoleDriver.start(frontend, memory)) as driver:
                os.write(here.screen, b"\x03\x04\n")
                assert await driver.read(3) == b"\x03\x04\n"
                await driver.write(b"shown\n")
                assert os.read(here.screen, 6) == b"shown\n"
                fcntl.ioctl(here.screen, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 132, 0, 0))
                while (await read_config(frontend))[:2] != (132, 40):
                    await asyncio.sleep(0)

    with at_a_terminal(path) as here:
        run_async(lambda: main(here))
        os.write(here.screen, b"\x1d")
        assert here.program.wait() == 0
        mode = termios.tcgetattr(here.keyboard)
        assert mode[3] & termios.ICANON
        assert mode[6][termios.VINTR] == b"\x03"
        assert not select.select([here.screen], [], [], 0)[0]


def test_its_own_terminal_hangs_up(path: Path, run_async: Run) -> None:
    """The guest goes on, and the program ends as ever."""

    async def main(here: OwnTerminal) -> None:
        memory = SharedMemory(1 << 20)
        with closing(memory), closing(await Frontend.connect(str(path))) as frontend:
            await frontend.negotiate()
            await frontend.share(memory)
            with closing(await ConsoleDriver.start(frontend, memory)) as driver:
                await driver.write(b"shown\n")
                here.hang_up()
                here.program.hear("this terminal has hung up")
                await driver.write(b"to nobody\n")
                assert (await read_config(frontend))[:2] == (0, 0)
                await driver.stop(frontend)

    with at_a_terminal(path) as here:
        run_async(lambda: main(here))
        here.program.stop()


def test_stdin_that_is_no_terminal(path: Path) -> None:
    with Program([CONSOLE, "--port=stdio", f"--socket-path={path}"]) as program:
        status, lines = program.ends()
    assert status == 1
    assert lines == [
        "vhost-user-console: error: --port=stdio: stdin is no terminal of ours: "
        "Inappropriate ioctl for device"
    ]
