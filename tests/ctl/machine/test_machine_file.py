"""A set of devices in a file."""

from pathlib import Path

import pytest

from vhostd.ctl.machine.devices import devices
from vhostd.ctl.machine.kinds import KINDS
from vhostd.ctl.machine.machine_file import load
from vhostd.errors import SetupError, UsageError

WHOLE = """
qemu = ["qemu-system-x86_64", "-m", "2G"]
display = true
rng = false
mouse = "/dev/input/event4,no-grab"

[[disk]]
source = "system.img"
cache = "direct"

[[disk]]
source = "data,1.img"
read-only = true
num-queues = 2
locking = "off"

[keyboard]
evemu-path = ["a.evemu", "b.evemu"]
"""


def written(folder: Path, text: str) -> str:
    path = folder / "vm.toml"
    path.write_text(text)
    return str(path)


def test_a_whole_file(tmp_path: Path) -> None:
    file = load(written(tmp_path, WHOLE))
    assert file.qemu == ("qemu-system-x86_64", "-m", "2G")
    assert file.folder == tmp_path
    made = {device.name: device for device in devices(file.wishes)}
    quiet = ("log-level", "warning")
    assert {name: device.options for name, device in made.items()} == {
        "disk0": (("blk-file", "system.img"), ("cache", "direct"), quiet),
        "disk1": (
            ("blk-file", "data,1.img"),
            ("read-only", None),
            ("num-queues", "2"),
            ("locking", "off"),
            quiet,
        ),
        "display0": (quiet,),
        "keyboard0": (("evemu-path", "a.evemu"), ("evemu-path", "b.evemu"), quiet),
        "mouse0": (("evdev-path", "/dev/input/event4"), ("no-grab", None), quiet),
    }
    assert {device.folder for device in made.values()} == {tmp_path}


@pytest.mark.parametrize(
    "text",
    ['disk = "a.img"', 'disk = ["a.img"]', 'disk = { source = "a.img" }', '[[disk]]\nblk-file = "a.img"'],
)
def test_ways_to_say_the_same(tmp_path: Path, text: str) -> None:
    (device,) = devices(load(written(tmp_path, text)).wishes)
    assert device.value("blk-file") == "a.img"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("disk = ", "not TOML: "),
        ('disks = "a.img"', "disks is unknown: did you mean disk?"),
        (
            "x = 1",
            f"x is unknown: there are qemu, {', '.join(kind.name for kind in KINDS)}",
        ),
        ("disk = 5", "disk[0]: it is neither true, a text, nor a table with options"),
        ("[[disk]]\nsource = 1.5", "disk[0].source: it is neither a text, a whole number"),
        ("[[disk]]\nsource = 2020-01-01", "disk[0].source: it is neither"),
        ("[[disk]]\n[disk.cache]", "disk[0].cache: it is neither"),
        ('qemu = "qemu-system-x86_64 -m 2G"', "qemu: it is not a list of words"),
        ('qemu = ["qemu-system-x86_64", 5]', "qemu[1]: Input should be a valid string"),
        ('disk = "a\\u0000"', "disk[0]: it has a character that no command line can have"),
        ('[display]\nsource = "x"', "display[0]: a display has no source"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: {complaint}")
    assert "\n" not in str(caught.value)


def test_an_option_that_the_program_does_not_know(tmp_path: Path) -> None:
    path = written(tmp_path, '[[disk]]\nsource = "a.img"\n[[disk]]\nsource = "b.img"\ncahce = "direct"')
    with pytest.raises(UsageError, match=r"vm\.toml: disk\[1\]: .*--cahce=direct"):
        devices(load(path).wishes)


@pytest.mark.parametrize("name", ["missing.toml", "."])
def test_what_cannot_be_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(SetupError, match=r"^--file="):
        load(str(tmp_path / name))


def test_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "vm.toml").write_bytes(b'disk = "\xff"')
    with pytest.raises(UsageError, match="not TOML"):
        load(str(tmp_path / "vm.toml"))
