"""The agent inside the guest: runs the host's commands, one JSON object per line over a virtio-serial port.

A request is {"call": name, "arguments": {...}, "timeout": seconds}; the answer is {"result": ...} or
{"error": text}. At start the agent says {"ready": seconds since the kernel started}. When the host
closes the port, the guest powers off: it never outlives the test that started it.
"""

import os
import select
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from tests.guest import agent_console
from tests.guest.agent_disk import DiskCommands
from tests.guest.agent_display import DisplayCommands
from tests.guest.agent_input import InputCommands
from tests.guest.agent_loop import Loop
from tests.guest.agent_programs import ProgramCommands
from tests.guest.agent_raw_gpu import RawGpuCommands
from tests.guest.jsonlines import AGENT_PORT, decode, encode

RECEIVE_SIZE = 65536

SLEEP = Path("/sys/power/state")
PAUSE = 0.01  # seconds

# Exit statuses: the script `init` does the rest.
POWER_OFF = 0
REBOOT = 3


class Agent:
    """Answers requests, in order, until `reboot` or the host hangs up."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._port = os.open(wait_port(loop), os.O_RDWR | os.O_CLOEXEC)
        self._received = b""
        self._commands: dict[str, Callable[..., Any]] = {
            "hwrng": hwrng,
            "rng_current": rng_current,
            "read_file": read_file,
            "kernel_log": kernel_log,
            "uptime": uptime,
            "sleep": lambda: None,  # the answer comes first
            **InputCommands(loop).table(),
            **DisplayCommands(loop).table(),
            **agent_console.commands(),
            **RawGpuCommands().table(),
            **DiskCommands(loop).table(),
            **ProgramCommands(loop).table(),
        }

    def run(self) -> NoReturn:
        """Serves until the exit status says what the guest shall do: it never returns."""
        self._loop.watch(self._port, self._receive)
        self._send({"ready": uptime()})
        while True:
            self._loop.deadline = float("inf")
            self._loop.wait(lambda: b"\n" in self._received, "a request")
            line, _, self._received = self._received.partition(b"\n")
            self._serve(decode(line))

    def _serve(self, request: dict[str, Any]) -> None:
        if request["call"] == "reboot":
            sys.exit(REBOOT)
        self._loop.deadline = time.monotonic() + request["timeout"]
        try:
            # What has happened so far counts as done before the command.
            self._loop.drain()
            result = self._commands[request["call"]](**request["arguments"])
        except Exception as error:
            print(traceback.format_exc(), file=sys.stderr, flush=True)
            self._send({"error": f"{type(error).__name__}: {error}"})
        else:
            self._send({"result": result})
        if request["call"] == "sleep":
            self._sleep()

    def _sleep(self) -> None:
        """Suspends the machine to RAM; returns when it is awake, and the host has the port open again."""
        SLEEP.write_text("mem")
        port = select.poll()
        port.register(self._port, 0)
        while port.poll(0):  # it has hung up
            time.sleep(PAUSE)

    def _receive(self) -> None:
        data = os.read(self._port, RECEIVE_SIZE)
        if not data:
            sys.exit(POWER_OFF)
        self._received += data

    def _send(self, message: dict[str, Any]) -> None:
        line = encode(message)
        while line:
            line = line[os.write(self._port, line) :]


def wait_port(loop: Loop) -> str:
    """The path of the host's port, once the driver has set it up."""
    loop.wait(lambda: bool(find_port()), "the virtio-serial port")
    return find_port()


def find_port() -> str:
    """The path of the host's port, empty if there is none (yet)."""
    for port in Path("/sys/class/virtio-ports").glob("*"):
        if (port / "name").exists() and (port / "name").read_text().strip() == AGENT_PORT:
            return f"/dev/{port.name}"
    return ""


def uptime() -> float:
    """Seconds since the guest's kernel started."""
    return float(Path("/proc/uptime").read_text().split()[0])


def hwrng(count: int) -> dict[str, Any]:
    """`count` bytes of /dev/hwrng in hex, and the seconds it took."""
    start = time.monotonic()
    data = b""
    with open("/dev/hwrng", "rb", buffering=0) as source:
        while len(data) < count:
            data += source.read(count - len(data))
    return {"data": data.hex(), "seconds": time.monotonic() - start}


def rng_current() -> str:
    """The name of the kernel's current hardware random number generator."""
    return Path("/sys/class/misc/hw_random/rng_current").read_text().strip()


def read_file(path: str) -> str:
    """A file's text."""
    return Path(path).read_text(errors="replace")


def kernel_log() -> list[str]:
    """The kernel's messages since boot."""
    log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    messages = []
    try:
        while True:
            record = os.read(log, 8192).decode(errors="replace")
            messages.append(record.partition(";")[2].partition("\n")[0])
    except BlockingIOError:
        return messages
    finally:
        os.close(log)


if __name__ == "__main__":
    Agent(Loop()).run()
