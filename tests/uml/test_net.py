"""vhost-user-net behind User-mode Linux, which leaves the card's address to the program."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.backend import Backend
from tests.net import echo
from tests.net.namespace import Namespace
from tests.uml.linux import Device, Linux
from vhostd.virtio.vocabulary import DeviceType

pytestmark = pytest.mark.guest

HOST, GUEST, PORT = "192.168.76.1", "192.168.76.2", "7"
MAC = "52:54:00:00:00:76"
TALK = Path(__file__).parents[1] / "guest/inside/talk.py"
MODULES = "net/core/failover drivers/net/net_failover drivers/net/virtio_net"
MODULE = "/usr/lib/uml/modules/$(uname -r)/kernel/$module.ko*"
LOAD = f"for module in {MODULES}; do busybox insmod {MODULE} || true; done"
SET_UP = f"ip addr add {GUEST}/24 dev eth0; ip link set eth0 up"


@pytest.fixture
def network() -> Iterator[Namespace]:
    with Namespace() as network:
        network.make_tap("tap0", f"{HOST}/24")
        server = network.python(Path(echo.__file__), PORT)
        yield network
        server.kill()
        server.communicate()


def test_a_card(network: Namespace, tmp_path: Path) -> None:
    options = ("--tap=tap0", f"--mac={MAC}")
    with (
        Backend("vhost-user-net", tmp_path, *options, launcher=network.launcher) as card,
        Linux(tmp_path, Device(card.path, DeviceType.of("net"))) as linux,
    ):
        linux.shell(LOAD)
        linux.shell(SET_UP)
        assert MAC in linux.shell("ip link show eth0")
        assert linux.shell("cat /sys/class/net/eth0/carrier") == "1"
        assert "lost 0" in linux.shell(f"python3 {TALK} udp {HOST} {PORT} 0 1500 13")
        linux.shell(f"python3 {TALK} tcp {HOST} {PORT} {128 << 20}")
