"""Each version of Landlock's interface that this kernel has, asked for no more than it would know."""

import subprocess
import sys
from pathlib import Path

import pytest

from vhostd.program.sandbox import landlock

CHECKOUT = Path(__file__).parents[3]
CHILD = """
import os, sys
from vhostd.host.folder import Folder
from vhostd.host.grants import Grants
from vhostd.host.removal import Removal
from vhostd.program.sandbox import landlock, privileges

read, written, cleared, victim = sys.argv[2:]
def tried(deed):
    try:
        deed()
    except OSError as error:
        return type(error).__name__
    return "done"

def write(path):
    with open(path, "w") as file:
        file.write("x")

privileges.limit()
removal = Removal(Folder(cleared), "file")
landlock.restrict(Grants((written,), (removal,), read=(read,)), int(sys.argv[1]))
import wave  # which is read now
print(
    tried(lambda: open(f"{read}/file").close()),
    tried(lambda: write(f"{read}/file")),
    tried(lambda: write(f"{written}/file")),
    tried(lambda: os.replace(f"{written}/file", f"{written}/other")),
    tried(lambda: os.unlink(f"{written}/other")),
    tried(lambda: os.unlink(f"{cleared}/file")),
    tried(lambda: write(f"{cleared}/file")),
    tried(lambda: open(victim).close()),
    tried(lambda: os.truncate(victim, 0)),
)
"""
DENIED, DONE = "PermissionError", "done"


@pytest.mark.parametrize("version", range(1, landlock.interface() + 1))
def test_every_version_holds(tmp_path: Path, version: int) -> None:
    folders = [tmp_path / name for name in ("read", "written", "cleared")]
    for folder in folders:
        folder.mkdir()
        (folder / "file").touch()
    victim = tmp_path / "victim"
    victim.write_text("precious")
    command = [sys.executable, "-c", CHILD, str(version), *map(str, folders), str(victim)]
    done = subprocess.run(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True, check=True)
    truncated = DENIED if version >= 3 else DONE  # before, nobody could forbid that
    expected = [DONE, DENIED, DONE, DONE, DONE, DONE, DENIED, DENIED, truncated]
    assert done.stdout.split() == expected


NODES = """
import errno, fcntl, os, sys, termios
from vhostd.host.folder import Folder
from vhostd.host.grants import Grants
from vhostd.host.removal import Removal
from vhostd.program.sandbox import landlock, privileges

def asked(path):
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOCTTY)
        fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(8))
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"

privileges.limit()
landlock.restrict(Grants(devices=("/dev",)), landlock.interface())
print(asked("/dev/zero"), asked("/dev/ptmx"), asked(sys.argv[1]))
"""


def test_device_nodes_are_opened_and_asked_below_a_folder_of_them(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.touch()
    command = [sys.executable, "-c", NODES, str(victim)]
    done = subprocess.run(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.split() == ["ENOTTY", "done", "EACCES"]


def test_a_folder_that_is_not_there_costs_nothing(tmp_path: Path) -> None:
    code = (
        "import sys; from vhostd.host.grants import Grants; "
        "from vhostd.program.sandbox import landlock, privileges; "
        "privileges.limit(); landlock.restrict(Grants(written=(sys.argv[1],)), 1)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "none")], cwd=CHECKOUT, check=True)


def test_a_module_s_folder_is_found_for_packages_and_files() -> None:
    folders = set(landlock.module_folders())
    assert str(CHECKOUT) in folders  # of vhostd, a package
    assert str(Path(pytest.__file__).parents[1]) in folders
    assert str(Path(subprocess.__file__).parent) in folders
