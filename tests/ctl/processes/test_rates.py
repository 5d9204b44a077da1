"""A program's metrics, asked twice."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import pytest

from vhostd.ctl.processes import rates as module
from vhostd.ctl.processes.rates import Counts, Rates, counts, rates
from vhostd.program.metrics.address import Address

PAGE = b"""HTTP/1.1 200 OK\r
Connection: close\r
\r
vhost_user_build_info{device="block",program="vhost-user-blk",version="1"} 1.0
vhost_user_requests_total{ring="0"} 5.0
vhost_user_requests_total{ring="1"} 1e+03
vhost_user_read_bytes_total{ring="0"} 1.5e+06
vhost_user_written_bytes_total{ring="0"} 7.0
vhost_user_errors_total{ring="0"} 3.0
"""


@contextmanager
def answering(path: Path, page: bytes) -> Iterator[Address]:
    """Answers one request."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            client, _ = listener.accept()
            with client:
                client.recv(4096)
                client.sendall(page)

        thread = Thread(target=serve)
        thread.start()
        yield Address(path=str(path))
        thread.join()


def test_all_rings_count(tmp_path: Path) -> None:
    with answering(tmp_path / "m", PAGE) as address:
        found = counts(address)
    assert (found.requests, found.read, found.written) == (1005.0, 1.5e6, 7.0)


@pytest.mark.parametrize("page", [b"", b"HTTP/1.1 404 Not Found\r\n\r\n", b"\xff" * 100])
def test_an_answer_of_another_program(tmp_path: Path, page: bytes) -> None:
    with answering(tmp_path / "m", page) as address, pytest.raises(ValueError, match="no metrics"):
        counts(address)


def test_an_answer_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGEST", 10)
    with answering(tmp_path / "m", PAGE) as address, pytest.raises(ValueError, match="too long"):
        counts(address)


def test_nobody_answers(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        counts(Address(path=str(tmp_path / "m")))


def test_rates_are_per_second() -> None:
    found = rates(Counts(10.0, 100, 1000, 5), Counts(12.0, 300, 1000, 4))
    assert found == Rates(requests=100.0, read=0.0, written=0.0)
