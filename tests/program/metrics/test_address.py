"""Where metrics are asked for, as an option says it and as a socket."""

import socket
from contextlib import closing
from pathlib import Path

import pytest

from vhostd.errors import SetupError
from vhostd.program.metrics.address import Address, listen, parse_address


@pytest.mark.parametrize(
    ("text", "address", "said"),
    [
        ("localhost:9100", Address("localhost", 9100), "localhost:9100"),
        (":9100", Address("127.0.0.1", 9100), "127.0.0.1:9100"),
        ("10.0.0.1:0", Address("10.0.0.1", 0), "10.0.0.1:0"),
        ("[::1]:65535", Address("::1", 65535), "[::1]:65535"),
        ("[fe80::1%eth0]:1", Address("fe80::1%eth0", 1), "[fe80::1%eth0]:1"),
        ("unix:/run/metrics", Address(path="/run/metrics"), "unix:/run/metrics"),
        ("unix:1", Address(path="1"), "unix:1"),
    ],
)
def test_an_address(text: str, address: Address, said: str) -> None:
    assert parse_address(text) == address
    assert str(address) == said


@pytest.mark.parametrize(
    "text",
    [
        "",
        "9100",
        ":",
        "host",
        "host:",
        ":-1",
        ":123456",
        "::1:9100",
        "[::1]",
        "[host]:1",
        "[]:1",
        "unix:",
        "http://h:1",
        " :1",
        ":٣",
    ],
)
def test_what_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="is not HOST:PORT, :PORT, "):
        parse_address(text)


@pytest.mark.parametrize("text", [":65536", "localhost:99999"])
def test_a_port_that_there_cannot_be(text: str) -> None:
    with pytest.raises(ValueError, match=f"'{text}': the port is above 65535"):
        parse_address(text)


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SetupError, match=f"cannot listen at 127.0.0.1:{port} for metrics: .*in use"):
            listen(Address("127.0.0.1", port))


@pytest.mark.parametrize("host", ["192.0.2.1", "a..b", "x" * 70])
def test_a_host_that_is_not_this_one(host: str) -> None:
    with pytest.raises(SetupError, match=f"cannot listen at {host}:0 for metrics: "):
        listen(Address(host))


def test_a_path(tmp_path: Path) -> None:
    path = tmp_path / "metrics"
    with closing(listen(Address(path=str(path)))) as endpoint:
        assert endpoint.listening
        with pytest.raises(SetupError, match="in use"):
            listen(Address(path=str(path)))
    assert not path.exists()
