"""What a network card costs: vhost-user-net, QEMU's tap netdev and passt's vhost-user mode in one guest.

    .venv/bin/python -m tests.bench.net [--rounds N] [--seconds S] [--passt COMMAND] [--sleepy] [--json FILE]

The guest has a card of each, and talks by each in turn to iperf3, in a namespace that the bench makes.
`--passt` is a passt that has --vhost-user: Debian 13's, or a newer one.
With `--sleepy`, processors that have nothing to do may sleep (see `measure.awake`).

Under KVM the guest's kernel is fast, and the back-ends bound what passes. Without KVM the emulated guest is
the bound of nearly all.
"""

import argparse
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.measure import Figure, awake, cpu_time, save, table
from tests.guest.guest import Guest
from tests.guest.modules import load_modules
from tests.programs import executable, listens_at

INSIDE = "VHOSTD_BENCH_NAMESPACE"
TAP, QEMU_TAP, PASST, STREAM = "tap", "QEMU's tap netdev", "passt --vhost-user", "passt's stream"
OURS = {TAP: "vhost-user-net on tap", STREAM: "vhost-user-net on passt"}
MIB = 1 << 20
SMALL = 64  # bytes of a datagram
RATE = "20M"  # bits per second of datagrams to the guest: more than it takes
PINGS = 300


@dataclass
class Card:
    """A card of the guest's: who is at its other end, and the processes that serve it beside QEMU."""

    name: str
    host: str
    guest: str
    options: list[str]
    pids: list[int] = field(default_factory=list)
    interface: str = ""


@dataclass
class Sample:
    """What was measured: how much, and what it has cost of the host's processors, for each unit of it."""

    amount: float
    cost: float


def run(command: str) -> None:
    """Runs a command of the set-up."""
    subprocess.run(shlex.split(command), check=True)


def make_tap(name: str, address: str) -> None:
    """A tap device with an address."""
    run(f"ip tuntap add dev {name} mode tap")
    run(f"sysctl -qw net.ipv6.conf.{name}.disable_ipv6=1")
    run(f"ip addr add {address}/24 dev {name}")
    run(f"ip link set {name} up")


@contextmanager
def started(command: Sequence[str], listens: Path | None = None) -> Iterator[int]:
    """A process, from when it listens; its id."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while listens is not None and not listens_at(listens):
            if process.poll() is not None:
                raise SystemExit(f"{shlex.join(command)} has ended")
        yield process.pid
    finally:
        process.kill()
        process.wait()


def passt_command(passt: str, path: Path, *options: str) -> list[str]:
    """A passt that takes the address of `uplink` for the guest's."""
    fixed = ("--foreground", "--quiet", "--runas", "0", "--interface", "uplink", "--socket", str(path))
    return [*shlex.split(passt), *fixed, *options]


def vhost_user(name: str, path: Path) -> list[str]:
    """QEMU's arguments for a card whose back-end listens at a path."""
    return [
        *("-chardev", f"socket,id={name}c,path={path}"),
        *("-netdev", f"vhost-user,id={name}n,chardev={name}c"),
        *("-device", f"virtio-net-pci,id={name},netdev={name}n,romfile="),
    ]


def cards(stack: ExitStack, folder: Path, passt: str | None) -> list[Card]:
    """All that can be on this machine, with their programs."""
    make_tap("tap0", "10.1.0.1")
    make_tap("tap1", "10.1.1.1")
    make_tap("uplink", "10.1.2.2")
    run("ip route add default via 10.1.2.1 dev uplink")
    own = executable("vhost-user-net")
    made = [
        Card(TAP, "10.1.0.1", "10.1.0.2", vhost_user("a", folder / "a")),
        Card(
            QEMU_TAP,
            "10.1.1.1",
            "10.1.1.2",
            [
                *("-netdev", "tap,id=bn,ifname=tap1,script=no,downscript=no"),
                *("-device", "virtio-net-pci,id=b,netdev=bn,romfile="),
            ],
        ),
    ]
    command = [own, f"--socket-path={folder}/a", "--tap=tap0"]
    made[0].pids.append(stack.enter_context(started(command, folder / "a")))
    if passt is None:
        return made
    vhost, stream, ours = folder / "c", folder / "d.passt", folder / "d"
    for name, path in ((PASST, vhost), (STREAM, ours)):
        made.append(Card(name, "10.1.2.1", "10.1.2.2", vhost_user(path.name, path)))
    made[2].pids.append(stack.enter_context(started(passt_command(passt, vhost, "--vhost-user"), None)))
    made[3].pids.append(stack.enter_context(started(passt_command(passt, stream), None)))
    while not (vhost.exists() and stream.exists()):
        pass
    made[3].pids.append(
        stack.enter_context(started([own, f"--socket-path={ours}", f"--stream={stream}"], ours))
    )
    return made


class Machine:
    """The guest, in which one card at a time has an address."""

    def __init__(self, guest: Guest, seconds: float) -> None:
        self._guest = guest
        self._seconds = seconds

    def shell(self, command: str) -> str:
        """What a line of shell prints in the guest."""
        done = self._guest.call("run", argv=["sh", "-c", command], timeout=60.0 + self._seconds)
        assert done["status"] == 0, f"{command}: {done['output']}"
        return str(done["output"])

    @contextmanager
    def using(self, card: Card) -> Iterator[None]:
        """Has the guest use this card only."""
        self.shell(f"ip addr add {card.guest}/24 dev {card.interface}; ip link set {card.interface} up")
        self.shell(f"busybox ping -c 1 -W 10 {card.host}")
        yield
        self.shell(f"ip link set {card.interface} down; ip addr flush dev {card.interface}")

    def cost(self, card: Card, measure: Callable[[], float]) -> Sample:
        """Measures, and what it has cost: of QEMU and of the back-end, microseconds for each unit."""
        pids = [self._guest.pid, *card.pids]
        before = sum(map(cpu_time, pids))
        amount = measure()
        return Sample(amount, (sum(map(cpu_time, pids)) - before) * 1e6 / amount)

    def iperf(self, card: Card, *options: str) -> dict[str, float]:
        """The sums of what iperf3 has received."""
        text = self.shell(f"iperf3 --json --client {card.host} --time {self._seconds} {' '.join(options)}")
        end = json.loads(text)["end"]
        found: dict[str, float] = end.get("sum_received") or end["sum"]
        return found | {
            "packets": end.get("sum", {}).get("packets", 0) - end.get("sum", {}).get("lost_packets", 0)
        }

    def bytes(self, card: Card, *options: str) -> float:
        """MiB that a connection moves per second."""
        return self.iperf(card, *options)["bits_per_second"] / 8 / MIB

    def packets(self, card: Card, *options: str) -> float:
        """Thousands of small datagrams that arrive per second."""
        sums = self.iperf(card, "--udp", "--bitrate", "0", "--length", str(SMALL), *options)
        return max(sums["packets"] / self._seconds / 1000, 0.001)

    def ping(self, card: Card) -> float:
        """Microseconds from a ping to its answer, as a rule."""
        said = self.shell(f"busybox ping -c {PINGS} -i 0.002 {card.host} | grep -o 'time=[0-9.]*'")
        return statistics.median(float(each) * 1000 for each in re.findall(r"[\d.]+", said))


MEASURES: dict[str, tuple[str, Callable[[Machine, Card], float], bool]] = {
    "TCP, from the guest": ("MiB/s", lambda machine, card: machine.bytes(card), True),
    "TCP, to the guest": ("MiB/s", lambda machine, card: machine.bytes(card, "--reverse"), True),
    "datagrams of 64 bytes, from the guest": ("k/s", lambda machine, card: machine.packets(card), True),
    "datagrams of 64 bytes, to the guest": (
        "k/s",
        lambda machine, card: machine.packets(card, "--reverse", "--bitrate", RATE),
        True,
    ),
    "ping": ("µs", lambda machine, card: machine.ping(card), False),
}


def measure(machine: Machine, every: Sequence[Card], rounds: int) -> dict[tuple[str, str], list[Sample]]:
    """Each measure of each card, in turn."""
    samples: dict[tuple[str, str], list[Sample]] = {}
    for number in range(rounds):
        for card in every if number % 2 else reversed(every):
            with machine.using(card):
                for what, (_unit, how, _more) in MEASURES.items():
                    sample = machine.cost(card, lambda how=how, card=card: how(machine, card))  # type: ignore[misc]
                    samples.setdefault((what, card.name), []).append(sample)
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return samples


def figures(samples: dict[tuple[str, str], list[Sample]]) -> Iterator[Figure]:
    """Ours beside the peer on the same kind of uplink: a tap device, or passt."""
    for (what, name), found in samples.items():
        unit, _how, more = MEASURES[what]
        peer = {TAP: QEMU_TAP, STREAM: PASST}.get(name)
        if peer is None:
            continue
        theirs = samples[what, peer]
        median = statistics.median
        limits = {"least": 1.0} if more else {"limit": 1.0}
        value, base = (median(each.amount for each in group) for group in (found, theirs))
        yield Figure(f"{OURS[name]}, beside {peer}", what, unit, value, base, **limits)
        if unit != "µs":
            value, base = (median(each.cost for each in group) for group in (found, theirs))
            yield Figure(f"{OURS[name]}, beside {peer}", f"{what}: CPU", f"µs per {unit[:-2]}", value, base)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2, help="of each measure; default: 2")
    parser.add_argument("--passt", help="a command of a passt that has --vhost-user")
    parser.add_argument("--sleepy", action="store_true", help="let processors sleep that have nothing to do")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if INSIDE not in os.environ:
        command = ["unshare", "--net", sys.executable, "-m", "tests.bench.net", *sys.argv[1:]]
        os.execvpe(command[0], command, os.environ | {INSIDE: "1"})
    run("ip link set lo up")
    run("sysctl -qw net.ipv4.ping_group_range='0 2147483647'")  # for passt's pings
    with ExitStack() as stack:
        if not options.sleepy:
            stack.enter_context(awake())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        every = cards(stack, folder, options.passt)
        stack.enter_context(started(["iperf3", "--server"]))
        guest = Guest(options=[option for card in every for option in card.options])
        with guest:
            load_modules(guest, folder / "modules", "virtio_net")
            for index, card in enumerate(every):
                card.interface = f"eth{index}"
            found = list(figures(measure(Machine(guest, options.seconds), every, options.rounds)))
    print(table(found))
    if options.json:
        save(options.json, found)


if __name__ == "__main__":
    main()
