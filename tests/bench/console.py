"""What a serial port carries: vhost-user-console beside QEMU's own virtserialport, in one guest.

    .venv/bin/python -m tests.bench.console [--rounds N] [--json FILE]

Both ports have a unix socket at the host's end, and the same program at the guest's. QEMU has our device
from 10.2 on. Where it only emulates a processor, most of the time is the guest's own.

"To the host" is dd(1) in the guest, which writes 64 KiB at a time, and a reader here. "To the guest" is the
other way round.
"There and back" is one byte at a time, which a program in the guest returns: round trips per second.
"""

import argparse
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from tests.bench.measure import Figure, Measure, alternate, cpu_time, save, table
from tests.guest.guest import Guest
from tests.programs import Program, executable, listening

ROUNDS = 11
PIECE = 1 << 16
SIZE = 8 << 20  # bytes at a time
TRIPS = 200
OURS, QEMUS = "ours", "qemu"
DEVICE = "vhost-user-test-device-pci,chardev=console,virtio-id=3,num_vqs=6,config_size=12"
ECHO = """
import os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
for _ in range(int(sys.argv[2])):
    os.write(fd, os.read(fd, 1))
"""


class Port:
    """A port of the guest's, by its name, and the client at its socket."""

    def __init__(self, guest: Guest, name: str, path: Path) -> None:
        self._guest = guest
        found = self.run(f"grep -lx {name} /sys/class/virtio-ports/*/name")
        self._device = f"/dev/{found.split('/')[-2]}"
        self._client = socket.socket(socket.AF_UNIX)
        self._client.connect(str(path))

    def run(self, command: str, *arguments: str) -> str:
        """What a line of shell with these arguments, from $0 on, prints in the guest."""
        done = self._guest.call("run", argv=["sh", "-c", command, *arguments])
        assert done["status"] == 0, done["output"]
        return str(done["output"]).strip()

    def to_host(self) -> float:
        """MiB per second from the guest."""
        self.run(f"dd if=/dev/zero of={self._device} bs={PIECE} count={SIZE // PIECE} status=none &")
        left = SIZE - len(self._client.recv(PIECE))
        begin = time.perf_counter()
        amount = left
        while left:
            left -= len(self._client.recv(min(left, PIECE)))
        return amount / (time.perf_counter() - begin) / (1 << 20)

    def to_guest(self) -> float:
        """MiB per second to the guest."""
        self.run(f"(head -c {SIZE} {self._device} >/dev/null; printf x >{self._device}) >/dev/null 2>&1 &")
        begin = time.perf_counter()
        self._client.sendall(bytes(SIZE))
        assert self._client.recv(1) == b"x"
        return SIZE / (time.perf_counter() - begin) / (1 << 20)

    def there_and_back(self) -> float:
        """Round trips per second."""
        self.run('"$0" -c "$@" >/dev/null 2>&1 &', sys.executable, ECHO, self._device, str(TRIPS + 1))
        self._trip()
        begin = time.perf_counter()
        for _ in range(TRIPS):
            self._trip()
        return TRIPS / (time.perf_counter() - begin)

    def close(self) -> None:
        """Hangs up."""
        self._client.close()

    def _trip(self) -> None:
        self._client.sendall(b"x")
        assert self._client.recv(1) == b"x"


@contextmanager
def ports(folder: Path) -> Iterator[tuple[dict[str, Port], Program]]:
    """A guest with a port of each, and our program."""
    command = [executable("vhost-user-console"), "--port=pty", f"--port=name={OURS},socket={folder / OURS}"]
    options = [
        *("-chardev", f"socket,id=console,path={folder / 'console.sock'}", "-device", DEVICE),
        *("-device", "virtio-serial-pci,id=qemus", "-chardev"),
        f"socket,id=serial,path={folder / QEMUS},server=on,wait=off",
        *("-device", f"virtserialport,bus=qemus.0,chardev=serial,name={QEMUS}"),
    ]
    with ExitStack() as stack:
        program = stack.enter_context(listening(command, folder / "console.sock"))
        guest = stack.enter_context(Guest(options=options))
        found = {name: Port(guest, name, folder / name) for name in (OURS, QEMUS)}
        for port in found.values():
            stack.callback(port.close)
        yield found, program


MEASURES: dict[str, tuple[str, Callable[[Port], float]]] = {
    "to the host": ("MiB/s", Port.to_host),
    "to the guest": ("MiB/s", Port.to_guest),
    "there and back": ("1/s", Port.there_and_back),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of which medians are taken: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ports(Path(folder)) as (found, program):
        subjects: dict[str, Measure] = {
            f"{name} {what}": partial(measure, port)
            for what, (_, measure) in MEASURES.items()
            for name, port in found.items()
        }
        before = cpu_time(program.pid)
        medians = alternate(subjects, options.rounds)
        cpu = (cpu_time(program.pid) - before) / options.rounds
    figures = [
        Figure("virtserialport", what, unit, medians[f"{OURS} {what}"], medians[f"{QEMUS} {what}"], least=1.0)
        for what, (unit, _) in MEASURES.items()
    ]
    print(table(figures))
    print(f"\nOur program takes {cpu * 1000:.1f} ms of CPU per round: {2 * SIZE >> 20} MiB, {TRIPS} trips.")
    if options.json is not None:
        save(options.json, figures)


if __name__ == "__main__":
    main()
