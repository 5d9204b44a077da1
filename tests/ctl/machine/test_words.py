"""QEMU's command line is read as QEMU reads it."""

import pytest

from vhostd.ctl.machine.words import Words, properties, words
from vhostd.errors import UsageError


def test_options_and_values() -> None:
    line = words(
        ("qemu-system-x86_64", "-M", "q35", "--nographic", "-m", "1G", "disk.img", "-S", "-append", "-m")
    )
    assert list(line.options()) == [
        ("machine", "q35"),
        ("nographic", ""),
        ("m", "1G"),
        ("hda", "disk.img"),
        ("S", ""),
        ("append", "-m"),
    ]  # fmt: skip
    assert line.has("nographic")
    assert not line.has("nodefaults")


@pytest.mark.parametrize(
    ("start", "program"),
    [
        (("qemu-system-x86_64",), "qemu-system-x86_64"),
        (("nice", "-n", "5", "/usr/bin/qemu-system-aarch64"), "/usr/bin/qemu-system-aarch64"),
        (("sudo", "-u", "qemu", "/usr/libexec/qemu-kvm"), "/usr/libexec/qemu-kvm"),
        (("kvm",), "kvm"),
        (("./vm.sh",), "./vm.sh"),
    ],
)
def test_what_starts_qemu(start: tuple[str, ...], program: str) -> None:
    line = words((*start, "-m", "1G"))
    assert (line.start, line.rest, line.program) == (start, ("-m", "1G"), program)


def test_qemu_merges_what_is_given_again() -> None:
    line = words(("qemu-system-x86_64", "-M", "pc,smm=off", "-machine", "type=q35", "-M", "accel=kvm"))
    assert line.property("machine", "type", "type") == "q35"
    assert line.property("machine", "smm") == "off"
    assert line.property("machine", "usb") is None


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("q35,smm=off,usb", {"type": "q35", "smm": "off", "usb": "on"}),
        ("type=q35", {"type": "q35"}),
        ("name=a,,b", {"name": "a,b"}),
        ('{"type": "gtk", "gl": true, "n": 3}', {"type": "gtk", "gl": "on", "n": "3"}),
        ("{nonsense", {}),
        ("", {}),
    ],
)
def test_properties(value: str, found: dict[str, str]) -> None:
    assert properties(value, "type") == found


@pytest.mark.parametrize("arguments", [(), ("-m", "1G")])
def test_a_command_line_without_a_program(arguments: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="qemu-system-x86_64 -m 2G"):
        words(arguments)


def test_a_value_that_is_missing() -> None:
    with pytest.raises(UsageError, match=r"^-m: QEMU wants a value after it$"):
        list(Words(("qemu",), ("-S", "-m")).options())
