"""Who can start a program: what keeps libvirt, which runs it as another user, from doing so."""

import os
import pwd
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import vhostd

LAUNCHERS = ("libvirt-qemu", "qemu")  # the user as whom libvirt starts programs, by distribution
CONFINEMENT = Path("/sys/module/apparmor/parameters/enabled")
# By ProtectHome= and PrivateTmp= of the units.
HIDDEN_FROM_SERVICES = tuple(map(Path, ("/home", "/root", "/run/user", "/tmp", "/var/tmp")))
# What the profile of libvirtd in its packages lets it start.
CONFINED_FOLDERS = tuple(map(Path, ("/bin", "/sbin", "/usr/bin", "/usr/sbin")))
CONFINED_PROGRAM = "vhost-user-gpu"
CONFINED_PROGRAM_FOLDERS = tuple(map(Path, ("/usr/lib", "/usr/lib64", "/usr/lib/qemu", "/usr/libexec")))


@dataclass(frozen=True)
class Account:
    """A user, as permissions see it."""

    name: str
    uid: int
    groups: frozenset[int]

    def may(self, permission: int, status: os.stat_result) -> bool:
        """Whether the mode gives it a permission, of stat.S_IRWXO's bits."""
        if self.uid == 0:
            return True
        shift = 6 if status.st_uid == self.uid else 3 if status.st_gid in self.groups else 0
        return status.st_mode >> shift & permission == permission


def launcher() -> Account:
    """The user as whom libvirt starts programs; somebody without any rights if it has none here."""
    for name in LAUNCHERS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(name, entry.pw_uid, frozenset(os.getgrouplist(name, entry.pw_gid)))
    return Account(LAUNCHERS[0], -1, frozenset())


def obstacle(program: Path, account: Account) -> Path | None:
    """The folder or file that keeps the account from running a program of this project; None if nothing does.

    Its interpreter, and this package, which it imports, are on the way as well.
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
    """The folder on the way to a file, or the file, that keeps the account from it; None if nothing does."""
    for each in _links(path):
        try:
            closed = [folder for folder in each.parents if not account.may(stat.S_IXOTH, folder.stat())]
            if closed:
                return closed[-1]
            if not account.may(permission, each.stat()):
                return each
        except OSError:  # so we cannot pass ourselves
            return each
    return None


def interpreter(program: Path) -> Path:
    """The interpreter that a script names in its first line, or the program itself if it is none.

    Where the path of Python is too long for that, or has spaces, pip writes a line of sh that starts it.
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
    """The folder in which the program or its interpreter lies, if it is one that no service sees."""
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
    """The path, each that it leads to if it is a symbolic link, and the real path in the end."""
    yield path
    seen = {path}
    while path.is_symlink() and (path := path.parent / path.readlink()) not in seen:
        seen.add(path)
        yield path
    yield path.resolve()
