"""A Debian 13 to install the package in: a copy of the chroot that contrib/debian-chroot.sh makes."""

import shlex
import subprocess
from pathlib import Path

ENVIRONMENT = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
}
# What apt and dpkg write down of every change, and what is made anew from it; nothing of a package's own.
BOOKKEEPING = (
    "var/cache/apt",
    "var/cache/ldconfig",
    "var/lib/apt",
    "var/lib/dpkg/available",
    "var/lib/dpkg/lock",
    "var/lib/dpkg/triggers/Lock",
    "var/lib/dpkg/status",
    "var/lib/dpkg/status-old",
    "var/lib/dpkg/diversions-old",
    "var/log/apt",
    "var/log/dpkg.log",
    "proc",
    "dev",
    "run/systemd",
)


class Chroot:
    """A root file system in which commands run, with a /proc of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def command(self, *command: str) -> list[str]:
        """The command that runs another one inside; what is mounted for it goes with it."""
        inner = f"mount -t proc proc {self.root}/proc && exec chroot {self.root} {shlex.join(command)}"
        return ["unshare", "--mount", "--propagation=private", "sh", "-c", inner]

    def run(self, *command: str, status: int = 0) -> str:
        """Runs a command inside; what it printed, on both streams. AssertionError for another status."""
        done = subprocess.run(
            self.command(*command),
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == status, f"{shlex.join(command)}: {done.returncode}: {done.stdout}"
        return done.stdout

    def state(self) -> dict[str, str]:
        """Everything in it but bookkeeping: mode and owner, and for files size and time of change."""
        found = {}
        for path in self.root.rglob("*"):
            name = str(path.relative_to(self.root))
            if not name.startswith(BOOKKEEPING):
                status = path.lstat()
                size = (
                    "" if path.is_dir() and not path.is_symlink() else f" {status.st_size} {status.st_mtime}"
                )
                found[name] = f"{status.st_mode:o} {status.st_uid}:{status.st_gid}{size}"
        return found
