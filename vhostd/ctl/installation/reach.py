"""What keeps libvirt, which runs programs as another user, or systemd from starting a program."""

import os
import pwd
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import vhostd

LAUNCHERS = ("libvirt-qemu", "qemu")  # the user who runs libvirt's programs, by distribution
CONFINEMENT = Path("/sys/module/apparmor/parameters/enabled")
# Folders that ProtectHome= and PrivateTmp= of the units hide.
HIDDEN_FROM_SERVICES = tuple(map(Path, ("/home", "/root", "/run/user", "/tmp", "/var/tmp")))
# The folders whose programs libvirtd may start, by the AppArmor profile in its packages.
CONFINED_FOLDERS = tuple(map(Path, ("/bin", "/sbin", "/usr/bin", "/usr/sbin")))
CONFINED_PROGRAM = "vhost-user-gpu"
CONFINED_PROGRAM_FOLDERS = tuple(map(Path, ("/usr/lib", "/usr/lib64", "/usr/lib/qemu", "/usr/libexec")))


@dataclass(frozen=True)
class Account:
    """A user, and what matters for file permissions."""

    name: str
    uid: int
    groups: frozenset[int]

    def may(self, permission: int, status: os.stat_result) -> bool:
        """Whether a file's mode gives the user a permission. `permission` is of stat.S_IRWXO's bits."""
        if self.uid == 0:
            return True
        shift = 6 if status.st_uid == self.uid else 3 if status.st_gid in self.groups else 0
        return status.st_mode >> shift & permission == permission


def launcher() -> Account:
    """The user who runs libvirt's programs. If there is no such user here, one without any rights."""
    for name in LAUNCHERS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(name, entry.pw_uid, frozenset(os.getgrouplist(name, entry.pw_gid)))
    return Account(LAUNCHERS[0], -1, frozenset())


def obstacle(program: Path, account: Account) -> Path | None:
    """The folder or file that keeps the account from running a program of this project; None without one.

    The account must also reach the program's interpreter, and this package, which the program imports.
    """
    readable = stat.S_IROTH
    for path, permission in (
        (program, readable | stat.S_IXOTH),
        (interpreter(program), stat.S_IXOTH),
        (Path(vhostd.__file__), readable),
    ):
        if closed := barrier(path, permission, account):
            return closed
    return None


def barrier(path: Path, permission: int, account: Account) -> Path | None:
    """The folder on the way to a file, or the file, that is closed to the account; None without one."""
    for each in _links(path):
        try:
            closed = [folder for folder in each.parents if not account.may(stat.S_IXOTH, folder.stat())]
            if closed:
                return closed[-1]
            if not account.may(permission, each.stat()):
                return each
        except OSError:  # this program itself cannot pass
            return each
    return None


def interpreter(program: Path) -> Path:
    """The interpreter in a script's first line; the program itself if it is not a script.

    If Python's path is too long for that line, or has spaces, pip writes a script of sh that starts Python.
    """
    try:
        with program.open("rb") as file:
            first, second = file.readline(4096), file.readline(4096)
    except OSError:
        return program
    if not first.startswith(b"#!"):
        return program
    if second.startswith(b"'''exec'"):
        return Path(os.fsdecode(second.removeprefix(b"'''exec'").strip().rpartition(b' "$0"')[0].strip(b'"')))
    return Path(os.fsdecode(first[2:].split()[0])) if first[2:].split() else program


def hidden_folder(program: Path) -> Path | None:
    """The folder of the program or of its interpreter, if systemd's services cannot see that folder."""
    for path in (program.resolve(), interpreter(program)):
        for folder in HIDDEN_FROM_SERVICES:
            if path.is_relative_to(folder):
                return folder
    return None


def is_confined_out(program: Path) -> bool:
    """Whether AppArmor's usual profile keeps libvirtd from starting a program."""
    real = program.resolve()
    allowed = CONFINED_PROGRAM_FOLDERS if real.name == CONFINED_PROGRAM else ()
    return real.parent not in (*CONFINED_FOLDERS, *allowed)


def confinement_is_on() -> bool:
    """Whether AppArmor is enabled on this machine."""
    try:
        return CONFINEMENT.read_text().startswith("Y")
    except OSError:
        return False


def _links(path: Path) -> Iterator[Path]:
    """The path, each path that its symbolic links lead to, and the real path at the end."""
    yield path
    seen = {path}
    while path.is_symlink() and (path := path.parent / path.readlink()) not in seen:
        seen.add(path)
        yield path
    yield path.resolve()
