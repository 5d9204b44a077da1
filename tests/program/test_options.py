import argparse
import sys
from types import ModuleType

import pytest

import vhostd
from vhostd.errors import UsageError
from vhostd.program import options
from vhostd.program.command_line import CommandLine
from vhostd.program.log import LEVELS
from vhostd.program.options import positive, size
from vhostd.vhost_user.offer import CHOICES, DEFAULT_OFFER, Offer
from vhostd.virtio.device import Device
from vhostd.virtio.vocabulary import DeviceType

EXAMPLE = """A lamp.

    vhost-user-lamp -s /x

    qemu-system-x86_64 \\
        -device lamp

More about lamps.

    lamp --drawing--> light
"""


class Lamp(Device):
    """a lamp

    Not for the help.
    """

    kind = DeviceType.CONSOLE

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--colour", default="white")


class Needy(Lamp):
    """a lamp that needs an option"""

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        super().add_options(parser)
        parser.add_argument("--bulb", required=True)


def parse(*arguments: str) -> argparse.Namespace:
    return options.parse(Lamp, CommandLine(["/usr/bin/vhost-user-lamp", *arguments]))


def test_nothing_given_means_the_defaults() -> None:
    assert vars(parse()) == {
        "socket_path": None,
        "fd": None,
        "socket_mode": None,
        "socket_group": None,
        "metrics": None,
        "offer": DEFAULT_OFFER,
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


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("all", set(CHOICES)),
        ("default", {choice.name for choice in CHOICES.values() if choice.by_default}),
        ("status", {"status"}),
        ("event-idx,status,status", {"event-idx", "status"}),
        ("status,all", set(CHOICES)),
    ],
)
def test_the_features_to_offer_are_chosen_by_name(text: str, names: set[str]) -> None:
    chosen, same = parse(f"--offer={text}").offer, Offer(names)
    for offered, expected in (
        (chosen.features, same.features),
        (chosen.protocol_features, same.protocol_features),
    ):
        assert offered((1 << 64) - 1) == expected((1 << 64) - 1)


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
        ("--offer=", "--offer: '' is no feature that can be chosen; there are indirect-desc, event-idx, "),
        ("--offer=indirect_desc", "'indirect_desc' is no feature .*: did you mean indirect-desc\\?$"),
        ("--offer=STATUS", ": did you mean status\\?$"),
        ("--offer=inflight", ": did you mean inflight-shmfd\\?$"),
        ("--offer=defualt", ": did you mean default\\?$"),
        ("--offer=default,", "'' is no feature"),
        ("--offer=default,evnt-idx", "'evnt-idx' is no .*: did you mean event-idx\\?$"),
        ("--offer=version-1", "'version-1' is no feature that can be chosen"),
        ("--log-level=loud", "--log-level: invalid choice: 'loud'"),
        ("--socket-pat=/run/x", "unknown option --socket-pat=/run/x: did you mean --socket-path\\?$"),
        ("--unknown", "unknown option --unknown$"),
        ("/run/x", "unexpected word /run/x: it is no option, and no option's value"),
        ("-", "unexpected word -: it is no option"),
        ("--print-capabilities=yes", "--print-capabilities: it takes no value, .* 'yes'"),
        ("--socket-path", "--socket-path: expected one argument"),
    ],
)
def test_a_wrong_option_is_a_usage_error_in_one_line(argument: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint) as refused:
        parse(argument)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("--sock /x", "--sock: did you mean --socket-path?"),
        ("-socket-path=/x", "-socket-path=/x: did you mean --socket-path?"),
        ("-socket-path /x --bulb=1", "-socket-path: did you mean --socket-path?"),
        ("-fd 3 --bulb=1", "-fd: did you mean --fd?"),
        ("--socket_path /x", "--socket_path: did you mean --socket-path?"),
        ("--Socket-Path /x", "--Socket-Path: did you mean --socket-path?"),
        ("--sokcet-path=/x --fd=3", "--sokcet-path=/x: did you mean --socket-path?"),
        ("--colour red --colur blue", "--colur: did you mean --colour?"),
        ("-s /run/x --sandbx none", "--sandbx: did you mean --sandbox?"),
        ("--version-of=1", "--version-of=1: did you mean --version?"),
        ("-z", "-z"),
        ("-d", "-d"),
        ("-cz", "-cz"),
        ("-zs /run/x", "-zs"),
        ("--fd=none --qqq", "--qqq"),
    ],
)
def test_an_unknown_option_is_named_first(words: str, named: str) -> None:
    with pytest.raises(UsageError) as refused:
        options.parse(Needy, CommandLine(["lamp", *words.split()]))
    assert str(refused.value) == f"unknown option {named}"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("disk.img", "unexpected word disk.img"),
        ("-s /run/x disk.img", "unexpected word disk.img"),
        ("-s /run/x", "the following arguments are required: --bulb"),
        ("-cs /run/x", "the following arguments are required: --bulb"),
        ("-cs", "argument --socket-path: expected one argument"),
        ("--bulb -x", "--bulb: expected one argument"),
        ("--bulb=1 -- -x", "unexpected word --"),
    ],
)
def test_values_are_no_unknown_options(words: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        options.parse(Needy, CommandLine(["lamp", *words.split()]))


@pytest.mark.parametrize("value", ["s", "fd", "-"])
def test_a_value_may_look_like_an_option_without_its_dashes(value: str) -> None:
    assert parse("-s", value).socket_path == value


@pytest.mark.parametrize("words", ["-s /run/x", "-s/run/x", "-cs /run/x", "-f 3 -cs/run/x"])
def test_options_have_the_short_names_of_qemu_s_programs(words: str) -> None:
    parsed = parse(*words.split())
    assert parsed.socket_path == "/run/x"
    assert parsed.print_capabilities == ("c" in words)
    assert parsed.fd == (3 if "-f" in words else None)


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


def test_help_ends_with_the_example_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("lamps")
    module.__doc__ = EXAMPLE
    monkeypatch.setitem(sys.modules, "lamps", module)
    for name in ("lamps", "lamps.device"):
        monkeypatch.setattr(Lamp, "__module__", name)
        text = options.make_parser(Lamp, "vhost-user-lamp").format_help()
        lines = ["  vhost-user-lamp -s /x", "", "  qemu-system-x86_64 \\", "      -device lamp", ""]
        assert text.endswith("\n".join(["(LISTEN_FDS).", "", "example:", *lines]))


def test_a_device_without_an_example(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lamp, "__module__", "lamps.that.nobody.has")
    assert options.make_parser(Lamp, "vhost-user-lamp").format_help().endswith("(LISTEN_FDS).\n")


def test_help_names_every_option() -> None:
    text = options.make_parser(Lamp, "vhost-user-lamp").format_help()
    names = "socket-path fd socket-mode socket-group log-level print-capabilities version colour"
    for option in names.split():
        assert f"--{option}" in text
    assert all(name in text for name in ("all, default", *CHOICES))


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
        ("1P", 1 << 50),
        ("7E", 7 << 60),
        ("1GiB", 1 << 30),
        ("1gib", 1 << 30),
        ("1KiB", 1024),
        ("512B", 512),
        ("1.5G", 3 << 29),
        ("0.5KiB", 512),
        ("1.50K", 1536),
    ],
)
def test_sizes_may_have_a_unit(text: str, found: int) -> None:
    assert size(text) == found


@pytest.mark.parametrize(
    "text",
    [
        *("", "0", "0M", "-1", "M", "1X", "1KK", " 1", "9" * 19, "9" * 15 + "T"),
        *("1.5", "0.1K", "1.K", ".5G", "1,5G", "1e3", "8E", "8191.9999999999P", "iB", "1iB", "1 G", "0x10"),
        "\u0661K",
    ],
)
def test_what_is_no_size_is_named(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"{text!r} is not a size"):
        size(text)


@pytest.mark.parametrize(("text", "remedy"), [("1KB", "1K or 1KiB"), ("1.5gb", "1.5g or 1.5giB")])
def test_a_unit_that_means_two_things_is_refused(text: str, remedy: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}' has two meanings: say {remedy}"):
        size(text)


def test_positive_numbers_may_be_large() -> None:
    assert positive("9" * 18) == 10**18 - 1
