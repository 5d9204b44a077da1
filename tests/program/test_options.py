import argparse

import pytest

import vhostd
from vhostd.errors import UsageError
from vhostd.program import options
from vhostd.program.command_line import CommandLine
from vhostd.program.log import LEVELS
from vhostd.program.options import positive, size
from vhostd.virtio.device import Device
from vhostd.virtio.vocabulary import DeviceType


class Lamp(Device):
    """a lamp

    Not for the help.
    """

    kind = DeviceType.CONSOLE

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--colour", default="white")


def parse(*arguments: str) -> argparse.Namespace:
    return options.parse(Lamp, CommandLine(["/usr/bin/vhost-user-lamp", *arguments]))


def test_nothing_given_means_the_defaults() -> None:
    assert vars(parse()) == {
        "socket_path": None,
        "fd": None,
        "socket_mode": None,
        "socket_group": None,
        "metrics": None,
        "sandbox": "default",
        "log_level": None,
        "print_capabilities": False,
        "colour": "white",
    }


@pytest.mark.parametrize(
    ("argument", "name", "value"),
    [
        ("--socket-path=/run/x", "socket_path", "/run/x"),
        ("--fd=0", "fd", 0),
        ("--fd=2147483647", "fd", 0x7FFF_FFFF),
        ("--colour=red", "colour", "red"),
        *((f"--log-level={level}", "log_level", level) for level in LEVELS),
    ],
)
def test_an_option_is_taken(argument: str, name: str, value: object) -> None:
    assert getattr(parse(argument), name) == value


@pytest.mark.parametrize(("text", "mode"), [("0660", 0o660), ("0", 0), ("777", 0o777)])
def test_modes_are_octal(text: str, mode: int) -> None:
    assert parse("--socket-path=/run/x", f"--socket-mode={text}").socket_mode == mode


def test_groups_go_by_name_or_number() -> None:
    for group in ("root", "0"):
        assert parse("--socket-path=/run/x", f"--socket-group={group}").socket_group == 0


@pytest.mark.parametrize(
    ("argument", "complaint"),
    [
        ("--fd=-1", "--fd: '-1' is not the number of a file descriptor"),
        ("--fd=stdin", "--fd: 'stdin' is not the number"),
        ("--fd=", "--fd: '' is not the number"),
        ("--fd=2147483648", "--fd: '2147483648' is not the number"),
        ("--fd=" + "9" * 5000, "is not the number"),
        ("--socket-mode=888", "--socket-mode: '888' is not an octal mode up to 777"),
        ("--socket-mode=1777", "--socket-mode: '1777' is not"),
        ("--socket-mode=-1", "--socket-mode: '-1' is not"),
        ("--socket-mode=u+w", "--socket-mode: 'u\\+w' is not"),
        ("--socket-mode=0o660", "--socket-mode: '0o660' is not"),
        ("--socket-mode=6_6_0", "--socket-mode: '6_6_0' is not"),
        ("--socket-mode=\u0667\u0667\u0667", "--socket-mode: '\u0667+' is not"),
        *((f"--{name}=--", f"argument --{name}: '--' is no value") for name in ("fd", "colour", "log-level")),
        ("--socket-group=no such group", "--socket-group: no group 'no such group'"),
        ("--log-level=loud", "--log-level: invalid choice: 'loud'"),
        ("--socket-pat=/run/x", "unrecognized arguments: --socket-pat=/run/x"),
        ("--unknown", "unrecognized arguments: --unknown"),
        ("/run/x", "unrecognized arguments: /run/x"),
        ("--socket-path", "--socket-path: expected one argument"),
    ],
)
def test_a_wrong_option_is_a_usage_error_in_one_line(argument: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint) as refused:
        parse(argument)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("argument", ["--socket-mode=0", "--socket-group=0"])
def test_mode_and_group_need_a_path(argument: str) -> None:
    with pytest.raises(UsageError, match="--socket-mode and --socket-group need --socket-path"):
        parse(argument)
    with pytest.raises(UsageError, match="need --socket-path"):
        parse(argument, "--fd=3")


def test_version_and_help_end_the_program_well(capfd: pytest.CaptureFixture[str]) -> None:
    for argument in ("--version", "--help"):
        with pytest.raises(SystemExit) as ended:
            parse(argument)
        assert ended.value.code == 0
    printed = capfd.readouterr().out
    assert printed.startswith(f"vhost-user-lamp {vhostd.__version__}\n")
    assert "A vhost-user back-end: a lamp" in printed
    assert "Not for the help" not in printed


def test_help_names_every_option() -> None:
    text = options.make_parser(Lamp, "vhost-user-lamp").format_help()
    names = "socket-path fd socket-mode socket-group log-level print-capabilities version colour"
    for option in names.split():
        assert f"--{option}" in text


@pytest.mark.parametrize("text", ["0", "-1", "", "1e3", "9" * 19, "9" * 5000])
def test_what_is_no_positive_number_is_named(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=repr(text)):
        positive(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1", 1),
        ("65536", 65536),
        ("64K", 65536),
        ("64k", 65536),
        ("3M", 3 << 20),
        ("2G", 2 << 30),
        ("1T", 1 << 40),
    ],
)
def test_sizes_may_have_a_unit(text: str, found: int) -> None:
    assert size(text) == found


@pytest.mark.parametrize(
    "text", ["", "0", "0M", "-1", "M", "1.5G", "1X", "1KK", " 1", "9" * 19, "9" * 15 + "T"]
)
def test_what_is_no_size_is_named(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"{text!r} is not a size"):
        size(text)


def test_positive_numbers_may_be_large() -> None:
    assert positive("9" * 18) == 10**18 - 1
