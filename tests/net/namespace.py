"""A network of the test's own: a namespace of the kernel, with nothing in it but what a test puts there.

with Namespace() as namespace:
    namespace.run("ip link add one type dummy")
"""

import shlex
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

MAC = "52:54:00:ff:ff:01"
HOLD = "ip link set lo up && echo there && exec sleep infinity"


class Namespace:
    """Lives as long as the `with` block, and the processes that were started in it."""

    def __init__(self) -> None:
        self._holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", HOLD],
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "there\n"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._holder.send_signal(signal.SIGKILL)
        self._holder.communicate()

    @property
    def launcher(self) -> Sequence[str]:
        """What starts a command in it, in front of the command; its process is the command's."""
        return ["nsenter", f"--net=/proc/{self._holder.pid}/ns/net"]

    def run(self, command: str) -> str:
        """Runs a command, without a shell, which must succeed; what it printed."""
        done = subprocess.run([*self.launcher, *shlex.split(command)], capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def make_tap(self, name: str, address: str, *, queues: bool = False) -> None:
        """Makes a tap device, whose host has this address, with the length of its network's prefix."""
        self.run(f"ip tuntap add dev {name} mode tap{' multi_queue' if queues else ''}")
        self.run(f"ip link set {name} address {MAC}")  # the same each time: nobody has to ask for it anew
        # No router advertisements and the like, which nobody has asked for.
        self.run(f"sysctl -qw net.ipv6.conf.{name}.disable_ipv6=1")
        self.run(f"ip addr add {address} dev {name}")
        self.run(f"ip link set {name} up")

    def python(self, script: Path, *arguments: str) -> "subprocess.Popen[str]":
        """Starts a Python script in it, which says `ready` when it is."""
        process = subprocess.Popen(
            [*self.launcher, "python3", str(script), *arguments],
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process
