"""A real service manager of the test's own: systemd as a user's manager, run by root.

It has its own mounts, sockets, units and control group, and need not be PID 1. Being root's it can do what a
user's cannot: make up mounts and devices, and, before 257, users. So it runs the units as they are, sandbox
and all.
"""

import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.programs import PATIENCE, PROGRAMS, environment, notified
from tests.systemd.units import CHECKOUT, install

SYSTEMD = "/lib/systemd/systemd"
# This checkout may lie in a folder that the units hide: /tmp, or a home. A home of the service's own must be
# open to other users; 252 opens it, 257 has to be told, and 252 does not listen to that.
LET_IN = ("ProtectHome=tmpfs", f"BindReadOnlyPaths={CHECKOUT}")
OPEN_HOMES = ("ProtectHome=no", "TemporaryFileSystem=/home:ro,mode=0755 /root:ro,mode=0755")
# From 257 on a user's manager refuses to make up users, also for root. Then it has to be told what follows
# from that: a made-up user's service has its folders, and sees them.
NO_DYNAMIC_USER = 257
STATIC_USER = ("DynamicUser=no", "User=nobody", "RuntimeDirectoryMode=0777", *OPEN_HOMES)
# What systemd as PID 1 would have made: /run as a mount, proof that it runs, and what it mounts over folders
# that a service must not see.
START = """
mount --rbind /run /run
mkdir -p /run/systemd
mount -t tmpfs none /run/systemd
mkdir -p /run/systemd/system /run/systemd/inaccessible/dir
cd /run/systemd/inaccessible
touch reg
mkfifo fifo
mknod chr c 0 0
mknod blk b 0 0
for group in "$@"; do
    mkdir "$group"
    echo $$ >"$group/cgroup.procs"
done
cd /
exec "$SYSTEMD" --user
"""


class Manager:
    """The running manager; leaving the `with` block ends it, and its services."""

    def __init__(self, folder: Path) -> None:
        # Not below /tmp, which the units hide from their services, and short, as sockets' paths must be.
        self.runtime = Path(tempfile.mkdtemp(prefix="vhostd-", dir="/run"))
        self.runtime.chmod(0o755)
        self.configuration = folder / "etc"
        self._units = folder / "config/systemd/user"
        self._units.mkdir(parents=True)
        install(self._units, self.configuration)
        user = (*STATIC_USER, f"BindPaths={folder / 'config'}") if _version() >= NO_DYNAMIC_USER else ()
        for program in PROGRAMS:
            self._write_drop_in(f"{program}@.service", *LET_IN, *user)
        roots = [Path("/sys/fs/cgroup", name) for name in ("systemd", "unified", "")]
        self._groups = [root / self.runtime.name for root in roots if (root / "cgroup.procs").exists()]
        self._environment = environment(
            {
                "HOME": str(folder),
                "XDG_CONFIG_HOME": str(folder / "config"),
                "XDG_RUNTIME_DIR": str(self.runtime),
                "SYSTEMD": SYSTEMD,
            }
        )
        # A user's manager keeps state beside its configuration.
        self.state = folder / "config"

    def __enter__(self) -> Self:
        command = ["unshare", "--mount", "sh", "-euc", START, "sh", *map(str, self._groups)]
        with notified() as ours:
            env = self._environment | {"NOTIFY_SOCKET": ours.name}
            self._process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL)
            try:
                ours.until("READY=1")
            except BaseException:
                self._stop()
                raise
        (self.runtime / "systemd/notify").chmod(0o777)  # as PID 1's is, for services of other users
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(PATIENCE)
        end = time.monotonic() + PATIENCE
        while left := [inner for group in self._groups for inner in group.glob("**/")]:
            assert time.monotonic() < end, f"processes are left in {left}"
            for inner in sorted(left, reverse=True):
                with suppress(OSError):  # its last process is about to end
                    inner.rmdir()
        subprocess.run(["rm", "-rf", self.runtime], check=True)

    def socket_path(self, program: str, instance: str = "a") -> Path:
        """Where the program's socket unit listens."""
        return self.runtime / program / f"{instance}.sock"

    def configure(self, program: str, options: str, instance: str = "a") -> None:
        """Writes the options of an instance, as its administrator would."""
        folder = self.configuration / program
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{instance}.conf").write_text(f'OPTIONS="{options}"\n')

    def drop_in(self, unit: str, *lines: str) -> None:
        """Changes a service, as `systemctl edit` does."""
        self._write_drop_in(unit, *lines)
        self.run("daemon-reload")

    def undo_drop_ins(self, unit: str) -> None:
        """Takes all changes of a service back, as `systemctl revert` does."""
        for path in (self._units / f"{unit}.d").iterdir():
            path.unlink()
        self.run("daemon-reload")

    def _write_drop_in(self, unit: str, *lines: str) -> None:
        folder = self._units / f"{unit}.d"
        folder.mkdir(exist_ok=True)
        # With the unit's name, as an instance's file would replace one of that name for all instances.
        path = folder / f"{unit}-{len(list(folder.iterdir()))}.conf"
        path.write_text("\n".join(("[Service]", *lines, "")))

    def call(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """systemctl, whatever comes of it."""
        command = ["systemctl", "--user", "--no-pager", *arguments]
        return subprocess.run(
            command, env=self._environment, capture_output=True, text=True, timeout=PATIENCE
        )

    def run(self, *arguments: str) -> str:
        """What systemctl prints; AssertionError unless it ends with status 0."""
        done = self.call(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.run("show", "--value", f"--property={name}", unit).strip()

    def shows(self, unit: str, name: str, value: str) -> None:
        """Waits until a property has this value."""
        self.until(lambda: self.show(unit, name) == value, lambda: self.run("show", unit))

    def until(self, reached: Callable[[], bool], describe: Callable[[], str] = str) -> None:
        """Looks again and again until `reached`."""
        end = time.monotonic() + PATIENCE
        while not reached():
            assert self._process.poll() is None, "the service manager has ended"
            assert time.monotonic() < end, f"never reached: {describe()}"
            os.sched_yield()


def _version() -> int:
    """The systemd of this machine."""
    shown = subprocess.run([SYSTEMD, "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout
    return int(re.findall(r"\d+", shown)[0])
