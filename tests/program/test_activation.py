"""The protocol of sd_listen_fds(3), in children whose fds from 3 on are theirs alone."""

import json
import os
import socket
import subprocess
import sys
from contextlib import closing, suppress
from typing import Any

import pytest

from vhostd.program.activation import Notifier, activated_fd, watchdog_interval

# Puts the sockets of argv[2:] at 3, 4, ..., sets up the environment of argv[1], and tells what was found.
CHILD = """
import ctypes, json, os, sys
passed = [os.dup(int(number)) for number in sys.argv[2:]]
for place, fd in enumerate(passed, 3):
    os.dup2(fd, place)
settings = json.loads(sys.argv[1])
os.environ.update({name: value.replace("PID", str(os.getpid())) for name, value in settings.items()})

from vhostd.program.activation import activated_fd
from vhostd.errors import SetupError

told = {}
try:
    fd = activated_fd()
    told["fd"] = fd and fd.fileno()
    told["inherited"] = bool(fd) and os.get_inheritable(fd.fileno())
    fd and fd.close()
except SetupError as error:
    told["error"] = str(error)
getenv = ctypes.CDLL(None).getenv
getenv.restype = ctypes.c_char_p
told["left"] = [name for name in settings if name in os.environ or getenv(name.encode())]
print(json.dumps(told))
"""


def activated(count: int, **settings: str) -> dict[str, Any]:
    """What a child found to which so many sockets and these variables were passed."""
    sockets = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(count)]
    # Numbers above those that the child puts them at.
    numbers = [os.dup(sock.fileno()) for sock in sockets]
    command = [sys.executable, "-c", CHILD, json.dumps(settings), *map(str, numbers)]
    try:
        done = subprocess.run(
            command,
            pass_fds=numbers,
            stdout=subprocess.PIPE,
            check=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
    finally:
        for number in numbers:
            os.close(number)
        for sock in sockets:
            sock.close()
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def test_one_socket_is_taken_and_the_environment_cleaned() -> None:
    told = activated(1, LISTEN_PID="PID", LISTEN_FDS="1", LISTEN_FDNAMES="x", LISTEN_PIDFDID="7")
    assert told == {"fd": 3, "inherited": False, "left": []}


def test_another_process_s_sockets_are_left_to_it() -> None:
    settings = {"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "x"}
    assert activated(1, **settings) == {"fd": None, "inherited": False, "left": list(settings)}


def test_two_sockets_are_an_error() -> None:
    told = activated(2, LISTEN_PID="PID", LISTEN_FDS="2")
    assert told == {"error": "systemd passed 2 sockets, not one", "left": []}


@pytest.mark.parametrize("count", ["0", "-1", "many", ""])
def test_a_count_that_is_none_is_an_error(count: str) -> None:
    told = activated(1, LISTEN_PID="PID", LISTEN_FDS=count)
    assert told == {"error": f"LISTEN_FDS={count}: Invalid argument", "left": []}


def test_a_socket_that_was_not_passed_is_an_error() -> None:
    assert activated(0, LISTEN_PID="PID", LISTEN_FDS="60")["error"] == "LISTEN_FDS=60: Bad file descriptor"


def test_without_systemd_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LISTEN_PID", raising=False)
    monkeypatch.setenv("LISTEN_FDS", "1")
    assert activated_fd() is None


def notify(state: str) -> None:
    with closing(Notifier()) as notifier:
        notifier.tell_now(state)


def test_the_service_manager_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("")  # the kernel picks an abstract name
        name: bytes = manager.getsockname()
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name[1:].decode()}")
        notify("READY=1\nSTATUS=waiting")
        assert manager.recv(100, socket.MSG_DONTWAIT) == b"READY=1\nSTATUS=waiting"


def test_a_service_manager_that_does_not_listen_keeps_no_start_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Signals are not heard yet, so nothing could end the wait."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("")
        name: bytes = manager.getsockname()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other, suppress(BlockingIOError):
            while True:
                other.sendto(b"unheard", socket.MSG_DONTWAIT, name)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name[1:].decode()}")
        notify("STATUS=starting")


def test_without_a_service_manager_nobody_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")


def test_a_service_manager_that_has_gone_costs_a_line_only(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere/notify")
    notify("READY=1")
    assert "the service manager could not be told 'READY=1'" in caplog.text


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [("30000000", 15.0), ("1", 0.0000005), ("0", None), ("", None), ("-1", None), ("x", None)],
)
def test_the_watchdog_is_shown_life_at_half_of_its_time(
    monkeypatch: pytest.MonkeyPatch, limit: str, seconds: float | None
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", limit)
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    assert watchdog_interval() == seconds
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert watchdog_interval() == seconds
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert watchdog_interval() is None
