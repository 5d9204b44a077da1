"""A libvirt domain's XML."""

import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.ctl.machine.wishes import HERE, made
from vhostd.ctl.machine.command import Machine
from vhostd.ctl.machine.domain import commands, domain
from vhostd.ctl.machine.words import words
from vhostd.errors import UsageError

ALL = ("--disk=a.img,num-queues=2", "--disk=b.img", "--display=scanouts=2", "--keyboard", "--rng")
QEMU = (
    *("qemu-system-x86_64", "-M", "q35", "-m", "2G", "-smp", "cpus=2,cores=2", "-cpu", "host", "-enable-kvm"),
    *("-name", "first", "-nographic", "-netdev", "user,id=n", "-S"),
)


def xml(asked: tuple[str, ...], arguments: tuple[str, ...] = QEMU) -> ElementTree.Element:
    return ElementTree.fromstring(domain(Machine(words(arguments), HERE, made(*asked))))


def test_what_libvirt_has_elements_for() -> None:
    root = xml(ALL)
    assert root.get("type") == "kvm"
    assert root.findtext("name") == "first"
    assert root.findtext("memory") == str(2 << 30)
    assert root.findtext("vcpu") == "2"
    kind = root.find("os/type")
    assert kind is not None
    assert (kind.attrib, kind.text) == ({"machine": "q35", "arch": "x86_64"}, "hvm")
    assert [each.get("path") for each in root.iterfind("devices/disk/source")] == [
        "/run/vhost/first-disk0.sock",
        "/run/vhost/first-disk1.sock",
    ]
    assert [each.get("dev") for each in root.iterfind("devices/disk/target")] == ["vda", "vdb"]
    assert [each.tag for each in root.iterfind("devices/disk/boot")] == ["boot"]
    assert [each.get("heads") for each in root.iterfind("devices/video/model")] == ["2"]


def test_what_it_has_none_for_is_passed_on() -> None:
    passed = [each.get("value") for each in xml(ALL).iter() if each.tag.endswith("}arg")]
    assert passed == [
        *("-chardev", "socket,id=keyboard0,path=/run/vhost/first-keyboard0.sock"),
        *("-device", "vhost-user-input-pci,chardev=keyboard0,addr=0x10"),
        *("-chardev", "socket,id=rng0,path=/run/vhost/first-rng0.sock"),
        *("-device", "vhost-user-rng-pci,chardev=rng0,addr=0x11"),
        *("-netdev", "user,id=n", "-S"),
    ]


def test_a_network_card() -> None:
    root = xml(("--net=tap0,queue-pairs=2,mac=52:54:00:00:00:01,mtu=9000",))
    (card,) = root.iterfind("devices/interface")
    source, driver = card.find("source"), card.find("driver")
    assert source is not None
    assert driver is not None
    assert source.get("path") == "/run/vhost/first-net0.sock"
    assert (card.get("type"), driver.get("queues")) == ("vhostuser", "2")
    mac, mtu = card.find("mac"), card.find("mtu")
    assert mac is not None
    assert mtu is not None
    assert (mac.get("address"), mtu.get("size")) == ("52:54:00:00:00:01", "9000")


def test_the_programs_to_start_before_it() -> None:
    lines = list(commands(Machine(words(QEMU), HERE, made(*ALL))))
    assert lines[0] == "mkdir -p /run/vhost"
    assert [line.split()[1] for line in lines[1:]] == [
        f"--socket-path=/run/vhost/first-{name}.sock" for name in ("disk0", "disk1", "keyboard0", "rng0")
    ]
    assert "--event-socket=/run/vhost/first-keyboard0.events" in lines[3]


def test_a_domain_of_little() -> None:
    root = xml(("--rng",), ("qemu-system-x86_64", "-kernel", "/k", "-append", "quiet"))
    assert root.get("type") == "qemu"
    assert root.findtext("name") == "vhostd"
    assert (root.findtext("os/kernel"), root.findtext("os/cmdline")) == ("/k", "quiet")


def test_numa_is_not_made() -> None:
    memory = ("-object", "memory-backend-memfd,id=m,size=1G", "-numa", "node,memdev=m")
    with pytest.raises(UsageError, match="-numa"):
        xml(ALL, (*QEMU, *memory))


@pytest.mark.skipif(shutil.which("virt-xml-validate") is None, reason="virt-xml-validate is not installed")
@pytest.mark.parametrize(
    "asked", [ALL, ("--rng",), ("--disk=a",), ("--net=tap0,mtu=9000",), ("--display",), ()]
)
def test_libvirt_s_schema_knows_it(tmp_path: Path, asked: tuple[str, ...]) -> None:
    path = tmp_path / "domain.xml"
    path.write_text(domain(Machine(words(QEMU), HERE, made(*asked))))
    done = subprocess.run(["virt-xml-validate", path, "domain"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
