"""--port, and what of it does not fit together."""

import argparse
import os
from pathlib import Path

import pytest

from tests.devices.vhost_user_console.driven import made
from vhost_user_console.options import KEEP, MOST_PORTS, PortOption, port_option
from vhostd.errors import SetupError, UsageError


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("pty", PortOption("pty")),
        ("pty,link=/tmp/a", PortOption("pty", link="/tmp/a")),
        (
            "name=org.qemu.guest_agent.0,socket=/tmp/s",
            PortOption("socket", "/tmp/s", "org.qemu.guest_agent.0"),
        ),
        ("socket=/tmp/s,mode=0660,group=0", PortOption("socket", "/tmp/s", mode=0o660, group=0)),
        ("file=/tmp/a,,b,keep=0", PortOption("file", "/tmp/a,b", keep=0)),
        ("stdio,keep=4K", PortOption("stdio", keep=4096)),
    ],
)
def test_a_port(text: str, option: PortOption) -> None:
    assert port_option(text) == option


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not one of pty, socket, file, stdio"),
        ("name=a", "is not one of"),
        ("pty,stdio", "is not one of"),
        ("pty,pty", "is not one of"),
        ("socket", "socket needs a path"),
        ("file=", "file needs a path"),
        ("pty=/tmp/a", "pty takes no value"),
        ("pty,mode=0660", "pty has no mode"),
        ("socket=/tmp/s,link=/tmp/a", "socket has no link"),
        ("pty,name=", "is no name"),
        ("pty,name=a/b", "is no name"),
        ("pty,name=" + "ä" * 51, "is no name"),
        ("pty,keep=much", "is not a size"),
        ("pty,keep=", "is not a size"),
    ],
)
def test_what_is_no_port(text: str, reason: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=reason):
        port_option(text)


def test_the_first_console_is_port_0(tmp_path: Path) -> None:
    device = made(f"name=a,file={tmp_path}/a", "pty", f"file={tmp_path}/b")
    try:
        ports = {port.number: port.line.place.rpartition("/")[2] for port in device._ports.values()}
        assert [*ports] == [0, 1, 2]
        assert (ports[1], ports[2]) == ("a", "b")
    finally:
        device.close()


def test_without_an_option_there_is_a_console() -> None:
    device = made()
    try:
        assert len(device.queues) == 2
        assert device._ports[0].line.place.startswith("/dev/pts/")
    finally:
        device.close()


def test_a_console_keeps_something_and_a_serial_port_nothing(tmp_path: Path) -> None:
    for option, kept in (
        (PortOption("pty"), KEEP),
        (PortOption("pty", name="a"), 0),
        (PortOption("pty", keep=5), 5),
    ):
        port = option.open(1)
        try:
            port.outlet.take(bytes(KEEP + 1))
            assert len(port.outlet._backlog) == kept
        finally:
            port.close()


@pytest.mark.parametrize(
    ("ports", "reason"),
    [
        (("name=a,pty", "name=a,pty"), "two ports have one name"),
        (("stdio", "name=a,stdio"), "stdio can be one port only"),
        (tuple(f"name={n},pty" for n in range(MOST_PORTS)), "at most"),
    ],
)
def test_ports_that_do_not_fit_together(ports: tuple[str, ...], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        made(*ports)


def test_if_one_cannot_be_made_none_is_left(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"file=.*: No such file"):
        made(f"socket={tmp_path}/socket", f"pty,link={tmp_path}/link", f"file={tmp_path}/none/file")
    assert os.listdir(tmp_path) == []
