"""vhost-user-net in a real guest, with two cards: one on a tap device of four queues, one on passt."""

import asyncio
import os
import re
import select
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from tests.guest.backend import Backend
from tests.guest.guest import Guest
from tests.guest.modules import load_modules
from tests.net import echo
from tests.net.namespace import Namespace
from tests.program.metrics.scraping import scrape
from vhostd.conformance.exchange import ARP
from vhostd.frontend import Frontend, NetDriver, SharedMemory
from vhostd.wire.fds import Fd

pytestmark = pytest.mark.guest

INSIDE = Path(__file__).parent / "inside"
TALK = f"python3 {INSIDE}/talk.py"
PORT, DISCARD = "7", "9"
HOST, GUEST, EVERYBODY = "192.168.77.1", "192.168.77.2", "192.168.77.255"
PASST, BEHIND_PASST = "192.168.78.1", "192.168.78.2"
MAC = "52:54:00:00:00:01"
PAIRS = 4
MIB = 1 << 20
LEASE = """
[ "$1" = bound ] || exit 0
ip addr add $ip/24 dev $interface
echo "nameserver $dns" > /tmp/resolv.conf
echo "lease $ip router $router dns $dns"
"""


# Sends packets of which the kernel keeps few, and waits until they are gone. Nobody answers: only the
# interrupts for them tell the guest that they are.
BLOCKED = f"""
from socket import *
sender = socket(AF_INET, SOCK_DGRAM)
sender.setsockopt(SOL_SOCKET, SO_SNDBUF, 2304)
sender.setsockopt(SOL_SOCKET, SO_BROADCAST, 1)
for _ in range(2000):
    sender.sendto(bytes(1400), ("{EVERYBODY}", {DISCARD}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("net")


@pytest.fixture(scope="module")
def network() -> Iterator[Namespace]:
    """The host's side: a tap device with an address, servers, and an uplink for passt."""
    with Namespace() as network, ExitStack() as stack:
        make_tap(network)
        network.make_tap("uplink", f"{BEHIND_PASST}/24")
        network.run(f"ip route add default via {PASST} dev uplink")
        for process in (
            network.python(Path(echo.__file__), PORT, "dns"),
            subprocess.Popen([*network.launcher, "iperf3", "--server"], stdout=subprocess.DEVNULL),
        ):
            stack.callback(process.communicate)
            stack.callback(process.kill)
        yield network


def make_tap(network: Namespace) -> None:
    network.make_tap("tap0", f"{HOST}/24", queues=True)


@pytest.fixture(scope="module")
def passt(network: Namespace, folder: Path) -> Iterator[Path]:
    """The socket of a passt, as a user starts it."""
    path = folder / "passt.sock"
    command = ["passt", "--foreground", "--socket", str(path), "--interface", "uplink", "--dns", PASST]
    process = subprocess.Popen(
        [*network.launcher, *command, "--runas", "0"], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if str(path) in line:
            break
    yield path
    process.kill()
    process.communicate()


@pytest.fixture(scope="module")
def card(network: Namespace, folder: Path) -> Iterator[Backend]:
    """The card on the tap device."""
    options = ("--tap=tap0", f"--queue-pairs={PAIRS}", f"--metrics=unix:{folder}/metrics")
    with Backend("vhost-user-net", folder, *options, name="tap", launcher=network.launcher) as backend:
        yield backend


@pytest.fixture(scope="module")
def stream_card(network: Namespace, folder: Path, passt: Path) -> Iterator[Backend]:
    """The card on passt."""
    with Backend(
        "vhost-user-net", folder, f"--stream={passt}", name="stream", launcher=network.launcher
    ) as backend:
        yield backend


def card_options(name: str, path: Path, properties: str, queues: int) -> list[str]:
    return [
        *("-chardev", f"socket,id={name}-chardev,path={path},reconnect-ms=100"),
        *("-netdev", f"vhost-user,id={name}-netdev,chardev={name}-chardev,queues={queues}"),
        *("-device", f"virtio-net-pci,id={name},netdev={name}-netdev,romfile=,{properties}"),
    ]


@pytest.fixture(scope="module")
def guest(card: Backend, stream_card: Backend, folder: Path) -> Iterator[Guest]:
    options = [
        *card_options("nic0", card.path, f"mac={MAC},mq=on,vectors={2 * PAIRS + 2},host_mtu=9000", PAIRS),
        *card_options("nic1", stream_card.path, "", 1),
    ]
    with Guest(options=options) as guest:
        set_up(guest, folder)
        yield guest


def set_up(guest: Guest, folder: Path) -> None:
    """Loads the driver, and gives the first card its address."""
    load_modules(guest, folder / "modules", "virtio_net")
    sh(guest, f"ip addr add {GUEST}/24 broadcast + dev eth0; ip link set eth0 mtu 1500 up; ip link set lo up")


def sh(guest: Guest, command: str, timeout: float = 60.0) -> str:
    """What a line of shell prints in the guest; it must succeed."""
    done = guest.call("run", argv=["sh", "-c", command], timeout=timeout)
    assert done["status"] == 0, f"{command}: {done['output']}"
    assert isinstance(done["output"], str)
    return done["output"]


def count(folder: Path, name: str) -> float:
    """A count of the card's."""
    return scrape(str(folder / "metrics")).value("vhost_user_device_total", count=name) or 0.0


def test_the_card_is_what_qemu_says(guest: Guest) -> None:
    assert MAC in sh(guest, "ip link show eth0")
    assert "maxmtu 9000" in sh(guest, "ip -details link show eth0")


def test_ping(guest: Guest) -> None:
    assert "0% packet loss" in sh(guest, f"busybox ping -c 3 -i 0.1 {HOST}")


def test_datagrams_of_every_size(guest: Guest) -> None:
    """Up to what fits in one frame each, and some of those that do not."""
    assert "lost 0" in sh(guest, f"{TALK} udp {HOST} {PORT} 0 1500 1")
    sh(guest, f"{TALK} udp {HOST} {PORT} 1501 65507 1601")


def test_a_sender_that_waits_for_its_packets_to_be_gone(guest: Guest) -> None:
    """The guest's kernel lets it go on when it is interrupted for them."""
    done = guest.call("run", argv=["python3", "-c", BLOCKED], timeout=30.0)
    assert done == {"status": 0, "output": ""}


def test_streams_both_ways(guest: Guest) -> None:
    sh(guest, f"{TALK} tcp {HOST} {PORT} {64 * MIB}")


def test_jumbo_frames(guest: Guest, network: Namespace) -> None:
    network.run("ip link set tap0 mtu 9000")
    sh(guest, "ip link set eth0 mtu 9000")
    sh(guest, f"{TALK} udp {HOST} {PORT} 8900 8972 1")
    sh(guest, f"{TALK} tcp {HOST} {PORT} {8 * MIB}")
    sh(guest, "ip link set eth0 mtu 1500")
    network.run("ip link set tap0 mtu 1500")


@pytest.mark.parametrize("way", ["", "--reverse", "--bidir", "--udp --bitrate 50M --length 1400"])
def test_iperf_and_a_ping_meanwhile(guest: Guest, way: str) -> None:
    iperf = guest.call("start", argv=["sh", "-c", f"iperf3 --client {HOST} --time 2 {way}"])
    pinged = sh(guest, f"busybox ping -c 15 -i 0.1 {HOST} | tail -2")
    assert guest.call("finish", pid=iperf)["status"] == 0
    assert "15 packets transmitted, 15 packets received" in pinged


def test_four_pairs_of_queues(guest: Guest, folder: Path) -> None:
    sh(guest, f"iperf3 --client {HOST} --time 1 --parallel 32 --bidir >/dev/null")
    page = scrape(str(folder / "metrics"))
    assert not page.value("vhost_user_requests_total", ring="2")
    assert sh(guest, f"python3 {INSIDE}/channels.py eth0 {PAIRS}") == f"{PAIRS}\n"
    # The kernel gives a flow's packets to the queue that it last came from.
    sh(guest, "for i in 0 1 2 3; do echo 1 > /sys/class/net/eth0/queues/tx-$i/xps_cpus; done; true")
    sh(guest, f"iperf3 --client {HOST} --time 2 --parallel 32 --bidir >/dev/null")
    page = scrape(str(folder / "metrics"))
    for ring in range(2 * PAIRS):
        assert page.value("vhost_user_requests_total", ring=str(ring)), f"ring {ring}"
    assert sh(guest, f"python3 {INSIDE}/channels.py eth0 1") == "1\n"
    sh(guest, f"{TALK} udp {HOST} {PORT} 1 200 1")


def test_the_link_goes_down_and_up(guest: Guest) -> None:
    guest.qmp.execute("set_link", {"name": "nic0", "up": False})
    sh(guest, "while grep -q 1 /sys/class/net/eth0/carrier; do sleep 0.05; done")
    guest.qmp.execute("set_link", {"name": "nic0", "up": True})
    sh(guest, "while ! grep -q 1 /sys/class/net/eth0/carrier; do sleep 0.05; done")
    sh(guest, f"{TALK} udp {HOST} {PORT} 1 100 1")


def under_load(guest: Guest, disturb: Callable[[], None], size: int = 192 * MIB) -> None:
    """A connection goes on, and loses nothing, whatever is done meanwhile."""
    load = guest.call("start", argv=["sh", "-c", f"exec {TALK} tcp {HOST} {PORT} {size}"])
    guest.call("wait_output", pid=load, text="talks")
    disturb()
    ended = guest.call("finish", pid=load, timeout=120.0)
    assert ended == {"status": 0, "output": f"talks\nreceived {size}\n"}


def test_the_guest_is_stopped_and_goes_on(guest: Guest) -> None:
    def disturb() -> None:
        guest.qmp.execute("stop")
        guest.qmp.execute("cont")

    under_load(guest, disturb, 32 * MIB)


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL], ids=["ends", "is killed"])
def test_the_program_ends_and_comes_back(guest: Guest, card: Backend, end: signal.Signals) -> None:
    under_load(guest, lambda: card.restart(end=end))


def test_the_tap_device_goes_and_comes_back(
    guest: Guest, card: Backend, network: Namespace, folder: Path
) -> None:
    def disturb() -> None:
        network.run("ip link del tap0")
        make_tap(network)

    under_load(guest, disturb)
    assert "--tap=tap0 is lost" in card.log()
    assert count(folder, "transmit_packets")


def test_an_address_of_passt(guest: Guest) -> None:
    """By DHCP; a name by DNS; and bytes through it."""
    sh(guest, f"cat > /tmp/lease <<'E'\n#!/bin/sh\n{LEASE}\nE\nchmod +x /tmp/lease; ip link set eth1 up")
    lease = sh(guest, "busybox udhcpc -i eth1 -n -q -s /tmp/lease 2>&1")
    assert f"lease {BEHIND_PASST} router {PASST} dns {PASST}" in lease
    assert re.search(r"192\.0\.2\.1\b", sh(guest, f"busybox nslookup a.name {PASST} 2>&1 || true"))
    sh(guest, f"{TALK} udp {PASST} {PORT} 0 1472 7")
    sh(guest, f"{TALK} tcp {PASST} {PORT} {16 * MIB}")
    sh(guest, f"{TALK} turns {PASST} {PORT} {32 * MIB}")
    for way in ("rx", "tx"):
        octets, packets = sh(
            guest, f"cd /sys/class/net/eth1/statistics; cat {way}_bytes {way}_packets"
        ).split()
        assert int(octets) / int(packets) > 1514, f"{way}: {octets} bytes in {packets} packets"


def test_a_reboot(guest: Guest, folder: Path) -> None:
    """By the reset button, while the card is in use."""
    guest.reset()
    set_up(guest, folder)
    sh(guest, f"{TALK} tcp {HOST} {PORT} {MIB}")


def test_nothing_was_wrong(guest: Guest, card: Backend, stream_card: Backend) -> None:
    for program in (card, stream_card):
        assert not re.search(r"broken|Traceback|ERROR|share=on", program.log()), program.log()


def test_the_next_front_end_after_one_that_is_killed(guest: Guest, card: Backend) -> None:
    """The last test: the guest is gone then."""
    with Fd(os.pidfd_open(guest.pid)) as qemu:
        signal.pidfd_send_signal(qemu.fileno(), signal.SIGKILL)
        assert select.select([qemu], [], [], 60.0)[0]  # it is gone

    async def main() -> None:
        frontend = await Frontend.connect(str(card.path))
        await frontend.negotiate()
        with closing(SharedMemory(8 * MIB)) as memory, closing(frontend):
            await frontend.share(memory)
            with closing(await NetDriver.start(frontend, memory)) as driver:
                await driver.send(ARP)

    asyncio.run(main())
