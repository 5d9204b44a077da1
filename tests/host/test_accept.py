"""Clients of a socket that listens are accepted, also after a time without free fds."""

import asyncio
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Run
from vhostd.host.accept import accept


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "socket"))
        sock.listen()
        sock.setblocking(False)
        yield sock


def test_a_client_does_not_block(listener: socket.socket, run_async: Run) -> None:
    async def main() -> None:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(listener.getsockname())
            client.send(b"hello")
            with await accept(listener, "somebody") as accepted:
                assert not accepted.getblocking()
                assert accepted.recv(5) == b"hello"

    run_async(main)


def test_without_an_fd_it_is_tried_again(
    listener: socket.socket, run_async: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        results = iter([OSError(errno.EMFILE, os.strerror(errno.EMFILE)), (client, "")])

        async def sock_accept(_listener: socket.socket) -> object:
            result = next(results)
            if isinstance(result, OSError):
                raise result
            return result

        monkeypatch.setattr(loop, "sock_accept", sock_accept, raising=False)
        assert await accept(listener, "somebody") is client

    monkeypatch.setattr("vhostd.host.accept.PAUSE", 0.0)
    with socket.socket(socket.AF_UNIX) as client:
        run_async(main)
    assert "somebody: no client can be accepted: Too many open files" in caplog.text
