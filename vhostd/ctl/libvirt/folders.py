"""The folders in which libvirt reads descriptions, and their files."""

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from vhostd.ctl.libvirt.discovery import File, Folder
from vhostd.ctl.libvirt.image import TOP, real
from vhostd.ctl.libvirt.json_text import LIMIT

SYSTEM = (Path("/usr/share/qemu/vhost-user"), Path("/etc/qemu/vhost-user"))
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a fifo",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def libvirt_folders(*, privileged: bool, environment: Mapping[str, str] = os.environ) -> list[Path]:
    """The folders from general to specific. Only a user's own libvirt (qemu:///session) reads the user's."""
    if privileged:
        return [*SYSTEM]
    config = environment.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return [*SYSTEM, Path(config, "qemu/vhost-user")]


def read_folder(path: Path, root: Path = TOP) -> Folder:
    """Reads a folder's files. All paths are below `root`."""
    try:
        names = sorted(os.listdir(real(root, path)))
    except FileNotFoundError:
        return Folder(path)
    except OSError as error:
        return Folder(path, fault=f"the folder cannot be read: {error.strerror}")
    return Folder(path, tuple(_read_file(path / name, root) for name in names))


def _read_file(path: Path, root: Path) -> File:
    if path.name.startswith("."):
        return File(path, ignored="it is hidden")
    try:
        place = real(root, path)
        status = place.stat()
    except OSError as error:
        return File(path, unreachable=error.strerror or str(error))
    if not stat.S_ISREG(status.st_mode):
        return File(path, ignored=f"it is {KINDS.get(stat.S_IFMT(status.st_mode), 'no file')}")
    try:
        with place.open("rb") as file:
            content = file.read(LIMIT)
    except OSError as error:
        return File(path, status.st_size, unreadable=error.strerror or str(error))
    return File(path, status.st_size, content)
