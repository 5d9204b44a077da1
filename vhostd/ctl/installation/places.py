"""Where the files of an installation go: a distribution's, the administrator's, a user's, or elsewhere."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

DISTRIBUTION = Path("/usr")
ADMINISTRATOR = Path("/usr/local")


@dataclass(frozen=True)
class Places:
    """The folders of one installation; `heard` if libvirt and systemd look into them, `user` if a user's."""

    descriptions: Path
    units: Path
    share: Path
    heard: bool = True
    user: bool = False

    @property
    def record(self) -> Path:
        """The file that says what was installed."""
        return self.share / "vhostd/installed.json"

    @property
    def manuals(self) -> Path:
        """The folder of manual pages of programs."""
        return self.share / "man/man1"

    @property
    def folders(self) -> tuple[Path, ...]:
        """All of them."""
        return self.descriptions, self.units, self.share

    def holds(self, path: Path) -> bool:
        """Whether a file is in one of the folders; a path that leads out of one and back is not."""
        return ".." not in path.parts and any(path.is_relative_to(folder) for folder in self.folders)

    def are_below(self, path: Path) -> bool:
        """Whether a path is a folder on the way to one of the folders."""
        return any(path in folder.parents for folder in self.folders)


def system_places(prefix: Path) -> Places:
    """Below a prefix; the configuration of /usr/local is in /etc, which libvirt and systemd read."""
    share = prefix / "share"
    if prefix == ADMINISTRATOR:
        return Places(Path("/etc/qemu/vhost-user"), Path("/etc/systemd/system"), share)
    return Places(
        share / "qemu/vhost-user", prefix / "lib/systemd/system", share, heard=prefix == DISTRIBUTION
    )


def user_places(environment: Mapping[str, str] = os.environ) -> Places:
    """A user's own, which the user's libvirt (qemu:///session) and service manager read."""
    config = _xdg(environment, "XDG_CONFIG_HOME", ".config")
    share = _xdg(environment, "XDG_DATA_HOME", ".local/share")
    return Places(config / "qemu/vhost-user", config / "systemd/user", share, user=True)


def _xdg(environment: Mapping[str, str], name: str, otherwise: str) -> Path:
    folder = Path(environment.get(name, ""))
    return folder if folder.is_absolute() else Path.home() / otherwise
