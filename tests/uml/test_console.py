"""vhost-user-console behind User-mode Linux: logins, resizes, a guest agent, and bytes without end."""

import base64
import fcntl
import hashlib
import json
import os
import select
import socket
import struct
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.programs import Program, executable, listening
from tests.uml.linux import Device, Linux
from vhostd.virtio.vocabulary import DeviceType

pytestmark = pytest.mark.guest

AGENT = "org.qemu.guest_agent.0"
DRIVER = "/usr/lib/uml/modules/$(uname -r)/kernel/drivers/char/virtio_console.ko"
PATIENCE = 30.0  # seconds for what takes milliseconds
MIB = 1 << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where everything is that these tests share."""
    return tmp_path_factory.mktemp("uml")


@pytest.fixture(scope="module")
def program(folder: Path) -> Iterator[Program]:
    ports = (
        f"pty,link={folder}/pty",
        f"name={AGENT},socket={folder}/agent",
        f"name=stream,socket={folder}/stream",
        f"name=log,file={folder}/log",
    )
    command = [executable("vhost-user-console"), *(f"--port={port}" for port in ports)]
    with listening(command, folder / "console.sock") as program:
        yield program
        program.stop()


@pytest.fixture(scope="module")
def linux(folder: Path, program: Program) -> Iterator[Linux]:
    """The guest of all tests, with port 0 as hvc0, and the others as vport0p1 to vport0p3."""
    with Linux(folder, Device(folder / "console.sock", DeviceType.CONSOLE)) as linux:
        load(linux)
        yield linux


def load(linux: Linux) -> None:
    """Loads the driver, and waits until it has set up the ports."""
    linux.shell(f"busybox insmod {DRIVER}")
    linux.shell("until [ -e /sys/class/virtio-ports/vport0p3/name ]; do :; done")


class Terminal:
    """Somebody at the console."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_NOCTTY)
        self.shown = b""

    def write(self, data: bytes) -> None:
        """Types something."""
        os.write(self.fd, data)

    def until(self, text: bytes) -> bytes:
        """What is shown up to a text, which must come; it is shown no more."""
        end = time.monotonic() + PATIENCE
        while text not in self.shown:
            assert select.select([self.fd], [], [], end - time.monotonic())[0], self.shown
            self.shown += os.read(self.fd, 4096)
        before, _, self.shown = self.shown.partition(text)
        return before

    def resize(self, rows: int, cols: int) -> None:
        """Has another size."""
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))


@contextmanager
def opened(path: Path) -> Iterator[Terminal]:
    """Somebody at the console, for the block's time."""
    terminal = Terminal(path)
    try:
        yield terminal
    finally:
        os.close(terminal.fd)


@contextmanager
def client(path: Path) -> Iterator[socket.socket]:
    """Somebody at a serial port."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(str(path))
        yield sock


def received(sock: socket.socket, size: int, *, at_a_time: int = 1 << 16, pause: float = 0) -> bytes:
    """So many bytes, read in pieces, with pauses between."""
    data = bytearray()
    while len(data) < size:
        piece = sock.recv(min(size - len(data), at_a_time))
        assert piece
        data += piece
        time.sleep(pause)
    return bytes(data)


def test_the_ports_are_found(linux: Linux) -> None:
    names = linux.shell("cat /sys/class/virtio-ports/*/name").split()
    assert names == [AGENT, "stream", "log"]


@pytest.fixture(scope="module")
def shell(linux: Linux, folder: Path) -> None:
    """Somebody has logged in at the console, and has hung up."""
    linux.shell("printf '#!/bin/sh\\nexec sh -i\\n' >/tmp/login && chmod +x /tmp/login")
    with opened(folder / "pty") as terminal:
        linux.shell("setsid env --default-signal busybox getty -l /tmp/login 115200 hvc0 >/tmp/said 2>&1 &")
        terminal.until(b"login: ")
        terminal.write(b"root\n")
        terminal.until(b"# ")


def test_a_login(shell: None, folder: Path) -> None:
    """Who hangs up and comes back finds the shell as it was."""
    with opened(folder / "pty") as terminal:
        terminal.write(b"here=$((6 * 7)); echo it is $here\n")
        terminal.until(b"it is 42\r\n")
    with opened(folder / "pty") as terminal:
        terminal.write(b"echo =$here=\n")
        terminal.until(b"=42=")


def test_its_size_follows(shell: None, folder: Path) -> None:
    with opened(folder / "pty") as terminal:
        for rows, cols in ((30, 100), (52, 211)):
            terminal.resize(rows, cols)
            terminal.write(b"\n")
            # The kernel passes it on when it has the time. What is typed is shown, too, and is another text.
            terminal.write(b"until stty size | grep -x '%d %d'; do :; done; echo so\\ it is\n" % (rows, cols))
            terminal.until(b"so it is\r\n")


def test_control_characters_are_the_guest_s(shell: None, folder: Path) -> None:
    with opened(folder / "pty") as terminal:
        terminal.write(b"cat\n")
        terminal.write(b"typed\n")
        for _ in range(2):  # the second is by cat, which runs by now
            terminal.until(b"typed\r\n")
        terminal.write(b"\x03")
        terminal.until(b"# ")
        terminal.write(b"echo status=$?\n")
        terminal.until(b"status=130")


def test_nobody_keeps_the_console_from_writing(linux: Linux, folder: Path) -> None:
    """Neither somebody who is not there, nor somebody who does not read."""
    flood = "dd if=/dev/zero of=/dev/hvc0 bs=64k count=16 status=none"
    linux.shell(f"{flood} && echo last words >/dev/hvc0")
    with opened(folder / "pty") as terminal:
        terminal.until(b"last words")
        linux.shell(flood)
        linux.shell("echo still here >/dev/hvc0")
        terminal.until(b"still here")


class Agent:
    """A client of the guest agent's."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._file = sock.makefile("rb")
        # Whatever is left of an earlier client ends at 0xff.
        sock.sendall(b"\xff")
        self._send({"execute": "guest-sync-delimited", "arguments": {"id": 4711}})
        while self._file.read(1) != b"\xff":
            pass
        assert json.loads(self._file.readline()) == {"return": 4711}

    def call(self, command: str, **arguments: Any) -> Any:
        """What the agent answers."""
        self._send({"execute": command, "arguments": arguments})
        answer = json.loads(self._file.readline())
        assert "return" in answer, answer
        return answer["return"]

    def close(self) -> None:
        self._file.close()

    def _send(self, message: dict[str, Any]) -> None:
        self._sock.sendall(json.dumps(message).encode() + b"\n")


def test_a_guest_agent(linux: Linux, folder: Path) -> None:
    """Clients come and go, and each gets its answers."""
    linux.shell("setsid qemu-ga -m virtio-serial -p /dev/vport0p1 -t /tmp >/tmp/ga 2>&1 &")
    for turn in range(3):
        with client(folder / "agent") as sock:
            agent = Agent(sock)
            assert agent.call("guest-ping") == {}
            run = {"path": "/bin/echo", "arg": [f"turn {turn}"], "capture-output": True}
            pid = agent.call("guest-exec", **run)["pid"]
            while not (status := agent.call("guest-exec-status", pid=pid))["exited"]:
                pass
            assert base64.b64decode(status["out-data"]) == b"turn %d\n" % turn
            agent.close()


def test_a_slow_reader_gets_everything(linux: Linux, folder: Path) -> None:
    linux.shell("head -c 4M /dev/urandom >/tmp/sent")
    with client(folder / "stream") as sock:
        linux.shell("cat /tmp/sent >/dev/vport0p2 &")
        data = received(sock, 4 * MIB, at_a_time=1 << 18, pause=0.005)
    assert linux.shell("sha256sum </tmp/sent").split()[0] == hashlib.sha256(data).hexdigest()


def test_the_guest_gets_everything(linux: Linux, folder: Path) -> None:
    data = os.urandom(4 * MIB)
    with client(folder / "stream") as sock:
        linux.shell(f"head -c {len(data)} /dev/vport0p2 >/tmp/received &")
        sock.sendall(data)
        linux.shell(f'until [ "$(stat -c %s /tmp/received)" = {len(data)} ]; do :; done')
    assert linux.shell("sha256sum </tmp/received").split()[0] == hashlib.sha256(data).hexdigest()


def test_a_file(linux: Linux, folder: Path) -> None:
    written = linux.shell(
        "head -c 4M /dev/urandom >/tmp/sent; cat /tmp/sent >/dev/vport0p3; sha256sum </tmp/sent"
    )
    end = time.monotonic() + PATIENCE
    while (folder / "log").stat().st_size < 4 * MIB:
        assert time.monotonic() < end
    assert hashlib.sha256((folder / "log").read_bytes()).hexdigest() == written.split()[0]


def test_it_is_there_after_a_reboot(linux: Linux, folder: Path) -> None:
    """A client that stays is told to the new kernel as well."""
    with client(folder / "stream") as sock, opened(folder / "pty") as terminal:
        linux.reboot()
        load(linux)
        linux.shell("echo hello >/dev/vport0p2")
        assert received(sock, 6) == b"hello\n"
        linux.shell("echo new console >/dev/hvc0")
        terminal.until(b"new console")


def test_a_console_alone(tmp_path: Path) -> None:
    """Without control messages."""
    command = [executable("vhost-user-console"), f"--port=pty,link={tmp_path}/pty"]
    with listening(command, tmp_path / "console.sock") as program:
        with Linux(tmp_path, Device(tmp_path / "console.sock", DeviceType.CONSOLE)) as linux:
            linux.shell(f"busybox insmod {DRIVER}")
            with opened(tmp_path / "pty") as terminal:
                terminal.resize(31, 99)
                linux.shell("exec 3</dev/hvc0; head -n 1 <&3 >/tmp/line &")
                terminal.write(b"typed\n")
                linux.shell('until [ "$(cat /tmp/line)" = typed ]; do :; done')
                linux.shell("until stty size </dev/hvc0 | grep '31 99'; do :; done")
                linux.shell("echo shown >/dev/hvc0")
                terminal.until(b"shown")
        program.stop()
