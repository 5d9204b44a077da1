"""What is asked for on the command line, as the programs' own command lines."""

import re
from pathlib import Path

import pytest

from tests.ctl.machine.wishes import made
from vhostd.ctl.machine.devices import split
from vhostd.errors import UsageError

FOLDER = Path("/run/vm")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        ("a.img", ["a.img"]),
        ("a.img,read-only", ["a.img", "read-only"]),
        ("a,,b.img,serial=x", ["a,b.img", "serial=x"]),
        ("a,,,b", ["a,", "b"]),
        ("a,", ["a", ""]),
    ],
)
def test_words_between_commas(text: str, words: list[str]) -> None:
    assert split(text) == words


@pytest.mark.parametrize(
    ("asked", "arguments"),
    [
        ("--disk=a.img", ["--blk-file=a.img"]),
        ("--disk=a.img,read-only,cache=direct", ["--blk-file=a.img", "--read-only", "--cache=direct"]),
        ("--disk=a,,b c.img", ["--blk-file=a,b c.img"]),
        ("--disk=ram=1G", ["--ram=1G"]),
        ("--disk=a,offer=default,,status", ["--blk-file=a", "--offer=default,status"]),
        ("--disk=a.img,,", ["--blk-file=a.img,"]),
        ("--disk=./ram=1G", ["--blk-file=./ram=1G"]),
        ("--disk=-odd.img", ["--blk-file=-odd.img"]),
        ("--display", []),
        ("--display=scanouts=2", ["--scanouts=2"]),
        ("--keyboard", ["--event-device=keyboard", "--event-socket=/run/vm/keyboard0.events"]),
        ("--tablet=name=A", ["--name=A", "--event-device=tablet", "--event-socket=/run/vm/tablet0.events"]),
        ("--mouse=event-socket=/tmp/m", ["--event-socket=/tmp/m", "--event-device=mouse"]),
        ("--keyboard=/dev/input/event3,no-grab", ["--evdev-path=/dev/input/event3", "--no-grab"]),
        ("--keyboard=evemu-path=a.evemu", ["--evemu-path=a.evemu"]),
        ("--rng", []),
        ("--console", ["--port=pty,link=/run/vm/console0.pty"]),
        ("--console=pty,,link=/tmp/a", ["--port=pty,link=/tmp/a"]),
        ("--console=file=/tmp/a", ["--port=file=/tmp/a"]),
        ("--console=pty,link=/tmp/a,,b,log-level=warning", ["--port=pty,link=/tmp/a,,b"]),
        ("--console=name=a,socket=/tmp/a,mode=0600", ["--port=name=a,socket=/tmp/a,mode=0600"]),
        ("--net=tap0,mac=52:54:00:00:00:01,mtu=9000", ["--tap=tap0"]),
        ("--rng=/dev/hwrng,max-bytes=1K", ["--rng-source=/dev/hwrng", "--max-bytes=1K"]),
    ],
)  # fmt: skip
def test_a_program_s_arguments(asked: str, arguments: list[str]) -> None:
    (device,) = made(asked)
    quiet = "--log-level=warning"
    assert sorted(device.arguments(FOLDER)) == sorted([*arguments, quiet])


def test_a_card_s_address_is_its_own() -> None:
    """It is the same each time, for a guest keeps settings by it."""
    cards = [device.value("mac") for device in made("--net=tap0", "--net=tap1", "--net=stream=/run/a")]
    assert len(set(cards)) == 3
    assert all(re.fullmatch("52:54:00(:[0-9a-f]{2}){3}", card or "") for card in cards)
    assert made("--net=tap1,log-level=info")[0].value("mac") == cards[1]


def test_a_log_level_of_the_user_s_own() -> None:
    (device,) = made("--rng=log-level=debug")
    assert device.arguments(FOLDER) == ["--log-level=debug"]


def test_each_device_has_a_name() -> None:
    names = [device.name for device in made("--disk=a", "--disk=b", "--rng", "--keyboard", "--mouse")]
    assert names == ["disk0", "disk1", "rng0", "keyboard0", "mouse0"]


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        ("--disk=a.img,cahce=direct", "--cahce=direct"),
        ("--disk=a.img,cache=fast", "fast"),
        ("--disk=a.img,serial", "--serial"),
        ("--disk=a.img,read-only=yes", "read-only"),
        ("--disk=", "--blk-file"),
        ("--disk=a.img,", "comma"),
        ("--disk=a.img,ram=1G", "--ram"),
        ("--disk=a.img,fd=3", "--fd is not for a program that `vhostctl run` starts"),
        ("--rng=socket-path=/tmp/x", "--socket-path is not for"),
        ("--display=/dev/dri/card0", "/dev/dri/card0"),
        ("--keyboard=qemu-system-x86_64,-m", "-m"),
        ("--console=stdio", "the terminal is QEMU's here"),
        ("--console=name=a,stdio", "the terminal is QEMU's here"),
        ("--console=pty,lnik=/tmp/a", "pty has no lnik"),
        ("--net=/tmp/passt.sock", "write stream=PATH"),
        ("--net=strem=/tmp/passt.sock", "write stream=PATH"),
        ("--net=tap0,mac=52:54", "is not an address"),
        ("--vsock=3", "the guest's address is an option: PATH,guest-cid=3"),
        ("--vsock=/tmp/a,cid=7", "did you mean --guest-cid?"),
    ],
)
def test_nonsense_is_said_by_the_option(asked: str, complaint: str) -> None:
    with pytest.raises(UsageError) as caught:
        made(asked)
    assert str(caught.value).startswith(f"{asked}: ")
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)
