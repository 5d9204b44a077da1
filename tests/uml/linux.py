"""User-mode Linux: a guest that is a process, whose kernel is a vhost-user front-end itself (virtio_uml).

    with Linux(tmp_path, Device(socket, DeviceType.BLOCK)) as linux:
        linux.shell("blkdiscard /dev/vda")

Its root is the host's own file system (hostfs), read-only: what the host has installed is there. What it
writes goes to memory. It has one processor.
"""

import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from tests.guest.kernel import cache_directory
from vhostd.virtio.vocabulary import DeviceType

# Where contrib/uml.sh has unpacked a newer kernel, its modules and its C library replace this machine's. The
# guest sees that as well.
NEWER = cache_directory() / "uml-forky"
REPLACE = """
for folder in usr/lib/x86_64-linux-gnu usr/lib/uml/modules; do
    mount -t overlay overlay -o "lowerdir=$0/$folder:/$folder" "/$folder"
done
exec "$0/usr/bin/linux.uml" "$@"
"""
INIT = Path(__file__).with_name("init")
BOOT_TIMEOUT = 60.0  # seconds for what takes two
CALL_TIMEOUT = 60.0


class GuestProblem(Exception):
    """The guest did not boot, does not answer, or has ended; tells the end of its console's log."""


class Device(NamedTuple):
    """A back-end that listens at `path`, and what it is."""

    path: Path
    kind: DeviceType

    def option(self) -> str:
        """It, for the kernel's command line."""
        return f"virtio_uml.device={self.path}:{self.kind:d}"


class Linux:
    """A guest with these devices, booted by `with`; its console's log is in `folder`."""

    def __init__(self, folder: Path, *devices: Device) -> None:
        self._console = folder / "console"
        self._socket, theirs = socket.socketpair()
        self._heard = b""
        command = [
            *(*kernel(), "mem=256M", f"uml_dir={folder}/"),
            *("rootfstype=hostfs", "rootflags=/", "ro", f"init={INIT}"),
            *("con=null", "con0=null,fd:1", f"con1=fd:{theirs.fileno()}"),
            *(device.option() for device in devices),
        ]
        with theirs, self._console.open("wb") as console:
            # A group of its own: its processes are processes of the host, as well.
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                pass_fds=[theirs.fileno()],
                process_group=0,
                env={**os.environ, "TMPDIR": memory_folder(folder)},
            )

    def __enter__(self) -> Self:
        try:
            self._answer(BOOT_TIMEOUT)
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def kill(self) -> None:
        """Ends it at once, as if the power failed: while it waits for a back-end it hears no other signal."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._socket.close()

    def run(self, command: str, timeout: float = CALL_TIMEOUT) -> tuple[int, str]:
        """Runs a line of shell in the guest; its status, and what it printed."""
        self._socket.sendall(command.encode() + b"\n")
        return self._answer(timeout)

    def shell(self, command: str, timeout: float = CALL_TIMEOUT) -> str:
        """Runs a line of shell in the guest, which must succeed; what it printed."""
        status, output = self.run(command, timeout)
        assert status == 0, f"{command}: {output}"
        return output.strip()

    def reboot(self) -> None:
        """Lets its kernel begin anew, in the same process; returns when the guest answers again."""
        self._socket.sendall(b"busybox reboot -f\n")
        self._answer(BOOT_TIMEOUT)

    def _answer(self, timeout: float) -> tuple[int, str]:
        deadline = time.monotonic() + timeout
        while not (self._heard.endswith(b"\n") and b"\0" in self._heard):
            self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                heard = self._socket.recv(65536)
            except (TimeoutError, ConnectionResetError):
                raise GuestProblem(f"no answer; its console: {self.console()[-2000:]}") from None
            if not heard:
                raise GuestProblem(f"it has ended; its console: {self.console()[-2000:]}")
            self._heard += heard
        output, _, status = self._heard.rpartition(b"\0")
        self._heard = b""
        return int(status), output.decode()

    def console(self) -> str:
        """What its kernel has said."""
        return self._console.read_text(errors="replace")


def kernel() -> list[str]:
    """The beginning of a command that runs the kernel; the process keeps its pid."""
    if not NEWER.is_dir():
        return ["linux.uml"]
    return ["unshare", "--mount", "sh", "-e", "-c", REPLACE, str(NEWER)]


def memory_folder(folder: Path) -> str:
    """Where the guest's memory is: a tmpfs, unless nothing there may be executed, as in some containers."""
    may_execute = not os.statvfs("/dev/shm").f_flag & os.ST_NOEXEC
    return "/dev/shm" if may_execute else str(folder)
