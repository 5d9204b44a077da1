"""What does not go with our devices is said."""

import pytest

from vhostd.ctl.machine.fit import check, display_arguments
from vhostd.ctl.machine.words import Words
from vhostd.errors import UsageError

PC = "qemu-system-x86_64"


def line(*rest: str, program: str = PC) -> Words:
    return Words((program,), rest)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (line("-daemonize"), "-daemonize: "),
        (line("-readconfig", "vm.cfg"), "-readconfig: "),
        (line("-M", "microvm"), "-machine microvm: it has no PCI"),
        (line("-machine", "none"), "-machine none: it has no PCI"),
        (line(program="qemu-system-s390x"), "ours need PCI"),
    ],
)
def test_what_no_device_goes_with(words: Words, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        check(words)


def test_a_small_machine_with_pci() -> None:
    check(line("-M", "microvm,pcie=on"))


@pytest.mark.parametrize(
    "rest",
    [
        ("-display", "gtk"),
        ("-display", "sdl,gl=off"),
        ("-display", "vnc=:1"),
        ("-vnc", ":1"),
        ("-spice", "port=5900"),
        ("-display", "curses"),
        ("-curses",),
    ],
)
def test_a_display_without_gl(rest: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match=r"gl=on, or -display none"):
        display_arguments(line(*rest), {})


@pytest.mark.parametrize(
    "rest",
    [
        ("-display", "gtk,gl=on"),
        ("-display", "sdl,gl=es"),
        ("-display", '{"type":"gtk","gl":"on"}'),
        ("-display", "dbus,p2p=on"),
        ("-display", "egl-headless"),
        ("-display", "none"),
        ("-nographic",),
        ("-spice", "gl=on,disable-ticketing=on"),
        ("-vnc", "none", "-display", "none"),
    ],
)
def test_a_display_that_works_is_left_as_it_is(rest: tuple[str, ...]) -> None:
    assert display_arguments(line(*rest), {"DISPLAY": ":0"}) == []


@pytest.mark.parametrize(
    ("session", "shown"),
    [
        ({"DISPLAY": ":0"}, "gtk,gl=on"),
        ({"WAYLAND_DISPLAY": "wayland-0"}, "gtk,gl=on"),
        ({"DISPLAY": ""}, "none"),
    ],
)
def test_the_display_by_default(session: dict[str, str], shown: str) -> None:
    assert display_arguments(line(), session) == ["-display", shown]


def test_a_vga_device_of_the_user_s_own() -> None:
    assert display_arguments(line("-vga", "std", "-nographic"), {}) == []


def test_a_machine_without_the_firmware_of_a_pc() -> None:
    other = line("-nographic", program="/usr/bin/qemu-system-aarch64")
    assert display_arguments(other, {}) == ["-vga", "none"]
