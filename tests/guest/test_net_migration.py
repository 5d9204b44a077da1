"""A guest with a network card moves to another QEMU: its packets go on, and its new place is announced."""

import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from threading import Thread
from typing import Self

import pytest

from tests.guest import kernel
from tests.guest.backend import Backend
from tests.guest.initramfs import initramfs
from tests.guest.jsonlines import JsonLines
from tests.guest.machine import QEMU, accelerator_options, shared_memory
from tests.guest.qmp import Qmp
from vhost_user_net.device import rarp

pytestmark = pytest.mark.guest

INIT = Path(__file__).with_name("init_arping")
MODULES = ("virtio_pci", "virtio_net")
KERNEL_OPTIONS = "console=ttyS0 quiet panic=-1 mitigations=off nokaslr"
PATIENCE = 120.0
MAC, OURS = bytes.fromhex("525400000007"), bytes.fromhex("525400ffff01")
ETH_P_ARP = b"\x08\x06"


class Switch:
    """What a card leads to: it has the address that the guest asks for, and keeps all frames."""

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / f"{name}.switch"
        self.card = folder / f"{name}.card"
        self.frames: list[bytes] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.path))
        self._thread = Thread(target=self._serve)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while frame := self._socket.recv(65536):
            self.frames.append(frame)
            if frame[12:14] == ETH_P_ARP and frame[20:22] == b"\0\1":  # who has that address?
                sender, asked = frame[22:32], frame[38:42]
                answer = frame[6:12] + OURS + frame[12:20] + b"\0\2" + OURS + asked + sender
                self._socket.sendto(answer.ljust(60, b"\0"), str(self.card))


class Machine:
    """A QEMU that runs the guest, or waits for it to come."""

    def __init__(self, card: Backend, log: Path, *, waits: bool = False) -> None:
        qmp, theirs = socket.socketpair()
        serial, their_serial = socket.socketpair()
        serial.settimeout(PATIENCE)
        self.qmp = Qmp(JsonLines(qmp))
        self._serial = serial.makefile(errors="replace")
        serial.close()  # the file goes on
        with theirs, their_serial, log.open("wb") as errors:
            command = [
                *(QEMU, "-machine", "q35,sata=off,i8042=off", *accelerator_options(), "-m", "256M"),
                *(*shared_memory("256M"), "-nodefaults", "-display", "none"),
                *("-chardev", f"socket,id=serial,fd={their_serial.fileno()}", "-serial", "chardev:serial"),
                *("-chardev", f"socket,id=qmp,fd={theirs.fileno()}", "-mon", "chardev=qmp,mode=control"),
                *("-kernel", str(kernel.boot_image()), "-initrd", str(initramfs(INIT, MODULES))),
                *("-append", KERNEL_OPTIONS),
                *("-chardev", f"socket,id=card,path={card.path}", "-netdev", "vhost-user,id=n,chardev=card"),
                *("-device", f"virtio-net-pci,netdev=n,mac={MAC.hex(':')},romfile="),
                *(["-incoming", "defer"] if waits else []),
            ]
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stderr=errors,
                pass_fds=[theirs.fileno(), their_serial.fileno()],
            )
        self.qmp.negotiate()

    def hear(self, count: int) -> None:
        """Waits for so many answers that the guest has got."""
        while count:
            line = self._serial.readline()
            assert line, "QEMU has ended"
            count -= line.startswith("answer")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self.qmp.close()
        self._serial.close()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_a_guest_moves(stack: ExitStack, tmp_path: Path) -> None:
    switches, machines = [], []
    for name in ("here", "there"):
        switch = stack.enter_context(Switch(tmp_path, name))
        options = (f"--dgram={switch.path}", f"--dgram-local={switch.card}")
        card = stack.enter_context(Backend("vhost-user-net", tmp_path, *options, name=name))
        machine = Machine(card, tmp_path / f"{name}.qemu", waits=name == "there")
        stack.callback(machine.close)
        switches.append(switch)
        machines.append(machine)
    here, there = machines
    here.hear(3)
    place = f"unix:{tmp_path}/migration"
    for machine in machines:
        capabilities = [{"capability": "events", "state": True}]
        machine.qmp.execute("migrate-set-capabilities", {"capabilities": capabilities})
    there.qmp.execute("migrate-incoming", {"uri": place})
    here.qmp.execute("migrate", {"uri": place})
    here.qmp.wait_event("MIGRATION", PATIENCE, status="completed")
    there.hear(3)
    assert rarp(MAC) in switches[1].frames
    assert rarp(MAC) not in switches[0].frames
