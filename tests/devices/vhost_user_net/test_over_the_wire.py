"""The installed program, in its sandbox, between a scripted driver and what a user would connect it to."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager
from pathlib import Path

import pytest

from tests.conftest import PATIENCE, Run
from tests.devices.vhost_user_net.cables import LENGTH
from tests.devices.vhost_user_net.test_net import frame
from tests.net.namespace import Namespace
from tests.programs import Program, connected, executable, get_features, listening
from vhostd import ctl
from vhostd.frontend import Frontend, Iommu, NetDriver, SharedMemory
from vhostd.frontend.drivers.net import MRG_RXBUF, NEEDS_CSUM, Header
from vhostd.virtio.vocabulary import Feature

NET = executable("vhost-user-net")
MEMORY = 16 << 20
FEATURES_BEHIND_AN_IOMMU = 1 << MRG_RXBUF | sum(
    1 << feature for feature in (Feature.ACCESS_PLATFORM, Feature.PROTOCOL_FEATURES, Feature.VERSION_1)
)
ARP_TYPE = b"\x08\x06"
TEST_TYPE = b"\x88\xb5"  # an EtherType for experiments


@contextmanager
def card(*options: str, launcher: Sequence[str] = ()) -> Iterator[tuple[Program, Frontend]]:
    """A program with a front-end that is connected to it."""
    with connected([*launcher, NET, *options]) as (program, sock), closing(Frontend(sock)) as frontend:
        yield program, frontend


@asynccontextmanager
async def driven(frontend: Frontend, pair: int = 0, buffer: int = 2048) -> AsyncIterator[NetDriver]:
    """A driver of the card's."""
    await frontend.negotiate()
    with closing(SharedMemory(MEMORY)) as memory:
        await frontend.share(memory)
        with closing(await NetDriver.start(frontend, memory, pair=pair, buffer=buffer)) as driver:
            async with asyncio.timeout(PATIENCE):
                yield driver


def test_a_peer_of_a_stream_ends_and_is_back(run_async: Run, tmp_path: Path) -> None:
    """It is there after the program, too."""
    path = tmp_path / "passt"

    def listen() -> socket.socket:
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(PATIENCE)
        return listener

    async def main() -> None:
        with card(f"--stream={path}") as (program, frontend):
            program.hear("it is tried again")
            async with driven(frontend) as driver:
                for seed in range(2):
                    with listen() as listener:
                        peer, _ = await asyncio.to_thread(listener.accept)
                    with peer:
                        program.hear("is there")
                        await driver.send(frame(100, seed))
                        assert peer.recv(1000) == LENGTH.pack(100) + frame(100, seed)
                        peer.send(LENGTH.pack(200) + frame(200, seed))
                        assert (await driver.receive())[1] == frame(200, seed)
                    program.hear("is lost: its other end is closed")

    run_async(main)


def test_two_cards_by_datagrams(run_async: Run, tmp_path: Path) -> None:
    """Each removes the file of its socket at the end; one that was left behind is replaced."""
    one, two = tmp_path / "one", tmp_path / "two"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as left:
        left.bind(str(one))

    async def main() -> None:
        with ExitStack() as stack:
            ends = [stack.enter_context(card(f"--dgram={two}", f"--dgram-local={one}"))]
            ends[0][0].hear("it is tried again")
            ends.append(stack.enter_context(card(f"--dgram={one}", f"--dgram-local={two}")))
            ends[0][0].hear("is there")
            async with driven(ends[0][1]) as first, driven(ends[1][1]) as second:
                for size in (60, 9000, 65000):
                    await first.send(frame(size))
                    assert (await second.receive())[1] == frame(size)
                    await second.send(frame(size, 2))
                    assert (await first.receive())[1] == frame(size, 2)
            for program, frontend in ends:
                frontend.close()
                assert program.wait() == 0

    run_async(main)
    assert not os.listdir(tmp_path)


def test_who_sends_datagrams_may_start_again(run_async: Run, tmp_path: Path) -> None:
    """The card hears the next one, too, although the guest sends nothing in between."""
    near, far = tmp_path / "near", tmp_path / "far"

    async def main() -> None:
        with card(f"--dgram={far}", f"--dgram-local={near}") as (program, frontend):
            async with driven(frontend) as driver:
                for seed in range(3):
                    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer:
                        peer.bind(str(far))
                        if not seed:
                            program.hear("is there")
                        while True:
                            try:
                                peer.sendto(frame(60, seed), str(near))
                                break
                            except PermissionError:  # until the card has seen that this is another one
                                await asyncio.sleep(0.01)
                        assert (await driver.receive())[1] == frame(60, seed)
                    far.unlink()

    run_async(main)


@pytest.mark.parametrize("kind", ["stream", "datagrams"])
def test_buffers_behind_an_iommu(run_async: Run, tmp_path: Path, kind: str) -> None:
    """A packet needs several, of which none is translated when it comes."""
    near, far = tmp_path / "near", tmp_path / "far"
    ways = {"stream": (f"--stream={far}",), "datagrams": (f"--dgram={far}", f"--dgram-local={near}")}

    async def main() -> None:
        sort = socket.SOCK_STREAM if kind == "stream" else socket.SOCK_DGRAM
        with ExitStack() as stack:
            peer = stack.enter_context(socket.socket(socket.AF_UNIX, sort))
            peer.bind(str(far))
            if kind == "stream":
                peer.listen()
            _, frontend = stack.enter_context(card("--offer=default,access-platform", *ways[kind]))
            await frontend.negotiate(FEATURES_BEHIND_AN_IOMMU)
            memory = stack.enter_context(closing(SharedMemory(MEMORY)))
            await frontend.share(memory)
            iommu = Iommu(frontend)
            await iommu.connect()
            iommu.map(memory.guest_addr, memory.user_addr, memory.size)
            queue = stack.enter_context(closing(await frontend.start(memory, 0, 64)))
            for _ in range(8):
                queue.add(room=4096)
            queue.kick()
            packet = frame(9000)
            if kind == "stream":
                stack.enter_context(peer.accept()[0]).sendall(LENGTH.pack(9000) + packet)
            else:
                peer.sendto(packet, str(near))
            async with asyncio.timeout(PATIENCE):
                pieces = [(await queue.used())[1] for _ in range(3)]
            assert b"".join(pieces)[12:] == packet
            await iommu.close()

    run_async(main)


def test_what_is_there_already_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "own"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as used:
        used.bind(str(path))
        assert refusal(f"--dgram={tmp_path}/other", f"--dgram-local={path}") == (
            f"cannot listen at {path}: another socket is in use there"
        )


# --- A tap device ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network() -> Iterator[Namespace]:
    with Namespace() as network:
        yield network


@pytest.fixture
def tap(network: Namespace) -> Iterator[str]:
    network.make_tap("tap0", "192.168.79.1/24")
    yield "tap0"
    network.run("ip link del tap0")


SNIFF = """
import socket, sys
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88b5)) as sock:
    sock.bind((sys.argv[1], 0x88b5))
    print("ready", flush=True)
    while True:
        data = sock.recv(70000)
        print(data.hex(), flush=True)
        sock.send(data[6:12] + data[:6] + data[12:])
"""


def test_a_tap_device(run_async: Run, network: Namespace, tap: str, tmp_path: Path) -> None:
    """What the card sends the host sees, and the other way round."""
    script = tmp_path / "sniff.py"
    script.write_text(SNIFF)
    host = network.python(script, tap)
    sent = frame(12) + TEST_TYPE + frame(1000)

    async def main() -> None:
        with card(f"--tap={tap}", launcher=network.launcher) as (_, frontend):
            async with driven(frontend) as driver:
                await driver.send(sent)
                assert host.stdout is not None
                assert bytes.fromhex(host.stdout.readline()) == sent
                while (got := (await driver.receive())[1])[12:14] != TEST_TYPE:
                    pass  # the host's own
                assert got == sent[6:12] + sent[:6] + sent[12:]

    try:
        run_async(main)
    finally:
        host.kill()
        host.communicate()


def test_the_kernel_judges_headers(run_async: Run, network: Namespace, tap: str) -> None:
    """A packet that it refuses costs that packet."""

    async def main() -> None:
        with card(f"--tap={tap}", launcher=network.launcher) as (_, frontend):
            async with driven(frontend) as driver:
                packet = frame(12) + TEST_TYPE + frame(1000)
                for field in Header._fields:
                    for value in (
                        (1, 3, 5, 0x7F, 0xFF) if field in ("flags", "gso_type") else (1, 0x7FFF, 0xFFFF)
                    ):
                        for flags in (0, NEEDS_CSUM):
                            wild = Header(flags=flags, gso_type=1, gso_size=1448)._replace(**{field: value})
                            await driver.send(packet, wild)
                await driver.send(packet)

    run_async(main)


def test_a_tap_device_of_several_queues(run_async: Run, network: Namespace) -> None:
    """Whichever pair a driver starts, it gets all packets: firmware starts only one."""
    network.make_tap("tap1", "192.168.80.1/24", queues=True)
    mac, theirs, ours = b"\x52\x54\0\0\0\2", bytes((192, 168, 80, 1)), bytes((192, 168, 80, 2))
    ethernet = bytes.fromhex("0001080006040001")  # a request; of an answer the last byte is 2
    request = b"\xff" * 6 + mac + ARP_TYPE + ethernet + mac + ours + bytes(6) + theirs + bytes(18)

    async def main() -> None:
        for pair in (0, 1, 2):
            with card("--tap=tap1", "--queue-pairs=3", launcher=network.launcher) as (_, frontend):
                assert await frontend_queues(frontend) == 6
                async with driven(frontend, pair=pair) as driver:
                    await driver.send(request)
                    while (await driver.receive())[1][12:22] != ARP_TYPE + ethernet[:-1] + b"\2":
                        pass  # the host's own
        assert frontend.features >> MRG_RXBUF & 1

    run_async(main)
    network.run("ip link del tap1")


MACVTAP = """
mount -t sysfs sysfs /sys
IFS=: read -r major minor </sys/class/macvtap/tap$(cat /sys/class/net/macvtap0/ifindex)/dev
mknod "$0" c "$major" "$minor"
exec "$@" 3<>"$0" 4<>"$0"
"""


def test_a_macvtap(run_async: Run, network: Namespace, tmp_path: Path) -> None:
    """Its fds are a tap device's: here it is at one end of a cable, and the host at the other."""
    network.run("ip link add near type veth peer name far")
    for command in ("set near up", "set far up", "add link near name macvtap0 type macvtap mode bridge"):
        network.run(f"ip link {command}")
    network.run("ip link set macvtap0 address 52:54:00:00:00:02 up")
    script = tmp_path / "sniff.py"
    script.write_text(SNIFF)
    host = network.python(script, "far")
    launcher = (*network.launcher, "unshare", "--mount", "sh", "-ec", MACVTAP, str(tmp_path / "node"))
    sent = b"\xff" * 6 + bytes.fromhex("525400000002") + TEST_TYPE + frame(1000)

    async def main() -> None:
        with card("--tap-fd=3", "--tap-fd=4", launcher=launcher) as (_, frontend):
            assert await frontend_queues(frontend) == 4
            async with driven(frontend) as driver:
                await driver.send(sent)
                assert host.stdout is not None
                assert bytes.fromhex(host.stdout.readline()) == sent
                while (got := (await driver.receive())[1])[12:14] != TEST_TYPE:
                    pass  # the host's own
                assert got == sent[6:12] + sent[:6] + sent[12:]

    try:
        run_async(main)
    finally:
        host.kill()
        host.communicate()
        network.run("ip link del near")


async def frontend_queues(frontend: Frontend) -> int:
    await frontend.negotiate()
    return await frontend.queue_num()


# --- Refusals -------------------------------------------------------------------------------------------


def refusal(*options: str, launcher: Sequence[str] = ()) -> str:
    """What the program says when it does not start."""
    with Program([*launcher, NET, "--socket-path=/nowhere/socket", *options]) as program:
        status, lines = program.ends()
    assert status in (1, 2)
    prefix, _, said = lines[-1].partition("error: ")
    assert prefix == "vhost-user-net: "
    return said


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), "one of the arguments --tap --tap-fd --stream --dgram is required"),
        (("--tap=a", "--stream=b"), "--stream: not allowed with argument --tap"),
        (("--tap=sixteen-bytes-is-too-long",), "no device has such a name"),
        (("--tap-fd=0",), "--tap-fd=0: this is no tap device"),
        (("--tap-fd=77",), "--tap-fd=77: this is no tap device: Bad file descriptor"),
        (("--stream=" + "x" * 200,), "it may have 1 to 107 bytes"),
        (("--stream=a", "--queue-pairs=2"), "only a tap device has more than one"),
        (("--stream=a", "--dgram-local=b"), "--dgram-local needs --dgram"),
        (("--dgram=a",), "--dgram needs --dgram-local"),
        (("--tap-fd=3", "--queue-pairs=2"), "there are 1 of --tap-fd"),
        (("--stream=a", "--queue-pairs=0"), "not a number from 1 to 128"),
        (("--stream=a", "--mtu=67"), "not a number from 68 to 65535"),
        (("--stream=a", "--mac=52:54:00:12:34"), "is not an address such as"),
        (("--stream=a", "--mac=53:54:00:12:34:56"), "its first byte is odd"),
    ],
)
def test_options_that_make_no_sense(options: Sequence[str], expected: str) -> None:
    assert expected in refusal(*options)


def test_a_tap_device_that_cannot_be_used(network: Namespace, tap: str) -> None:
    """Each refusal says what to do."""
    powerless = [*network.launcher, "setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"]
    assert "make it for this user: ip tuntap add dev tap7 mode tap user 0" in refusal(
        "--tap=tap7", launcher=powerless
    )
    network.run("ip tuntap add dev tap8 mode tap user 12345")
    assert "it is another user's or group's; to make it anew: ip link del tap8; ip tuntap add" in refusal(
        "--tap=tap8", launcher=powerless
    )
    assert f"it was made without multi_queue: ip link del {tap}; ip tuntap add dev {tap} mode tap multi" in (
        refusal(f"--tap={tap}", "--queue-pairs=2", launcher=network.launcher)
    )
    network.run("ip tuntap add dev tun8 mode tun")
    for other in ("lo", "tun8"):
        assert refusal(f"--tap={other}", launcher=network.launcher).endswith(": it is no tap device")
    with connected([*network.launcher, NET, f"--tap={tap}"]) as (_, sock):
        assert get_features(sock)
        assert "another program uses it" in refusal(f"--tap={tap}", launcher=network.launcher)


def test_a_tap_device_that_is_down(network: Namespace, tap: str) -> None:
    """A wrong name makes one, too, of which nobody hears anything else."""
    for name, is_made in (("tap9", True), (tap, False)):
        network.run(f"ip link set {tap} down")
        with connected([*network.launcher, NET, f"--tap={name}"]) as (program, sock):
            if is_made:
                program.hear("INFO: --tap=tap9: there was no such device; it is made")
            program.hear(f"WARNING: --tap={name}: it is down: ip link set {name} up")
            assert get_features(sock)


# --- Conformance ----------------------------------------------------------------------------------------


def test_it_breaks_no_rule(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = f"{NET} --socket-path={{socket}} --stream={tmp_path}/passt --mac=52:54:00:12:34:56"
    assert ctl.main(["check", "--exec", command, "--type", "net"]) == 0, capfd.readouterr().out


def test_it_serves_at_a_path(tmp_path: Path) -> None:
    with listening([NET, f"--stream={tmp_path}/passt"], tmp_path / "socket") as program:
        assert program.stop() < PATIENCE
