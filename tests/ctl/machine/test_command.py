"""QEMU's command line with our devices."""

from pathlib import Path

import pytest

from tests.ctl.machine.wishes import HERE, made
from tests.ctl.programs import script
from vhostd.ctl.machine.command import Machine, qemu_version
from vhostd.ctl.machine.words import Words, words
from vhostd.errors import SetupError

FOLDER = Path("/run/vm")
PC = "qemu-system-x86_64"


def command(asked: list[str], *rest: str, program: str = PC, version: tuple[int, int] = (10, 0)) -> str:
    """What is between QEMU's program and the user's own arguments, without the memory."""
    machine = Machine(words((program, *rest)), HERE, made(*asked))
    line = machine.command(FOLDER, version)
    assert (line[0], line[len(line) - len(rest) :]) == (program, list(rest))
    assert line[1] == "-object"
    return " ".join(line[5 : len(line) - len(rest)])


def test_a_disk_comes_back_and_is_booted_from() -> None:
    assert command(["--disk=a.img", "--disk=b.img,num-queues=2"], "-m", "1G") == (
        "-chardev socket,id=vhostctl-disk0,path=/run/vm/disk0.sock,reconnect-ms=1000 "
        "-device vhost-user-blk-pci,id=vhostctl-disk0,chardev=vhostctl-disk0,bootindex=1 "
        "-chardev socket,id=vhostctl-disk1,path=/run/vm/disk1.sock,reconnect-ms=1000 "
        "-device vhost-user-blk-pci,id=vhostctl-disk1,chardev=vhostctl-disk1,num-queues=2"
    )


def test_an_older_qemu_counts_seconds() -> None:
    assert "path=/run/vm/disk0.sock,reconnect=1 " in command(["--disk=a.img"], version=(9, 1))


@pytest.mark.parametrize("rest", [("-boot", "d"), ("-kernel", "k"), ("-device", "e1000,bootindex=1")])
def test_the_user_says_what_to_boot_from(rest: tuple[str, ...]) -> None:
    assert "bootindex" not in command(["--disk=a.img"], *rest)


def test_what_does_not_come_back_is_not_connected_again() -> None:
    assert command(["--rng", "--keyboard"]) == (
        "-chardev socket,id=vhostctl-rng0,path=/run/vm/rng0.sock "
        "-device vhost-user-rng-pci,id=vhostctl-rng0,chardev=vhostctl-rng0 "
        "-chardev socket,id=vhostctl-keyboard0,path=/run/vm/keyboard0.sock "
        "-device vhost-user-input-pci,id=vhostctl-keyboard0,chardev=vhostctl-keyboard0"
    )


def test_a_network_card_is_on_a_netdev() -> None:
    first, second = "mac=52:54:00:00:00:01", "mac=52:54:00:00:00:02"
    assert command(
        [f"--net=stream=/run/passt.sock,{first}", f"--net=tap1,queue-pairs=4,{second},mtu=9000"]
    ) == (
        "-chardev socket,id=vhostctl-net0,path=/run/vm/net0.sock,reconnect-ms=1000 "
        "-netdev vhost-user,id=vhostctl-net0-netdev,chardev=vhostctl-net0,queues=1 "
        f"-device virtio-net-pci,id=vhostctl-net0,netdev=vhostctl-net0-netdev,{first} "
        "-chardev socket,id=vhostctl-net1,path=/run/vm/net1.sock,reconnect-ms=1000 "
        "-netdev vhost-user,id=vhostctl-net1-netdev,chardev=vhostctl-net1,queues=4 "
        f"-device virtio-net-pci,id=vhostctl-net1,netdev=vhostctl-net1-netdev,{second},host_mtu=9000,"
        "mq=on,vectors=10"
    )


def test_a_network_card_has_an_address() -> None:
    assert ",mac=52:54:00:" in command(["--net=tap0"])


def test_the_first_display_of_a_pc_is_for_its_firmware_too() -> None:
    line = command(["--display=scanouts=2", "--display"], "-nographic")
    assert "-device vhost-user-vga,id=vhostctl-display0,chardev=vhostctl-display0,max_outputs=2" in line
    assert "-device vhost-user-gpu-pci,id=vhostctl-display1" in line


def test_a_console_takes_a_device_for_all_that_qemu_does_not_know() -> None:
    assert command(["--console"], version=(10, 2)) == (
        "-chardev socket,id=vhostctl-console0,path=/run/vm/console0.sock "
        "-device vhost-user-test-device-pci,virtio-id=3,num_vqs=2,config_size=12,"
        "id=vhostctl-console0,chardev=vhostctl-console0"
    )


def test_a_qemu_that_is_too_old_for_a_console() -> None:
    with pytest.raises(SetupError, match=r"--console needs QEMU 10\.2, and qemu-system-x86_64 is 10\.0"):
        command(["--console"], version=(10, 0))
    assert "vhost-user-test-device-pci" in command(["--console"], program="./start.sh", version=(10, 0))


@pytest.mark.parametrize("program", ["qemu-system-aarch64", "/usr/bin/qemu-system-riscv64"])
def test_a_display_elsewhere(program: str) -> None:
    line = command(["--display"], "-nographic", program=program)
    assert line.startswith("-vga none ")
    assert "-device vhost-user-gpu-pci," in line


def test_a_display_beside_a_vga_device_of_the_user_s_own() -> None:
    assert "-device vhost-user-gpu-pci," in command(["--display"], "-vga", "std", "-nographic")


def test_a_comma_in_the_folder_s_name() -> None:
    machine = Machine(words((PC,)), HERE, made("--rng"))
    assert "socket,id=vhostctl-rng0,path=/run/a,,b/rng0.sock" in machine.command(Path("/run/a,b"))


@pytest.mark.parametrize(
    ("prints", "version"),
    [
        ("QEMU emulator version 8.2.2 (Debian 1:8.2.2)", (8, 2)),
        ("QEMU emulator version 11.0.50", (11, 0)),
        ("QUEMU", (9, 2)),
    ],
)
def test_the_version_is_qemu_s_own_word(tmp_path: Path, prints: str, version: tuple[int, int]) -> None:
    qemu = script(tmp_path / PC, f'[ "$*" = --version ] && echo "{prints}"')
    assert qemu_version(Words((str(qemu),), ()), tmp_path) == version


def test_a_script_of_the_user_s_own_is_not_started_to_be_asked(tmp_path: Path) -> None:
    wrapper = script(tmp_path / "vm.sh", f"touch {tmp_path}/started")
    assert qemu_version(Words((str(wrapper),), ()), tmp_path) == (9, 2)
    assert not (tmp_path / "started").exists()


def test_a_qemu_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"^qemu-system-none is not installed"):
        Machine(words(("qemu-system-none",)), tmp_path, []).find_qemu()
