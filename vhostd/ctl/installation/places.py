"""The folders of an installation: the distribution's, the administrator's, a user's, or others."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

DISTRIBUTION = Path("/usr")
ADMINISTRATOR = Path("/usr/local")


@dataclass(frozen=True)
class Places:
    """The folders of one installation. `are_read`: libvirt and systemd read them. `user`: a user's."""

    descriptions: Path
    units: Path
    share: Path
    are_read: bool = True
    user: bool = False

    @property
    def record(self) -> Path:
        """The file with the record of the installation."""
        return self.share / "vhostd/installed.json"

    @property
    def manuals(self) -> Path:
        """The folder of the programs' manual pages."""
        return self.share / "man/man1"

    @property
    def folders(self) -> tuple[Path, ...]:
        """All folders."""
        return self.descriptions, self.units, self.share

    def holds(self, path: Path) -> bool:
        """Whether a file is in one of the folders. A path with ".." is not."""
        return ".." not in path.parts and any(path.is_relative_to(folder) for folder in self.folders)

    def are_below(self, path: Path) -> bool:
        """Whether a path is a folder on the way to one of the folders."""
        return any(path in folder.parents for folder in self.folders)


def system_places(prefix: Path) -> Places:
    """The places below a prefix. For /usr/local, configuration is in /etc, which libvirt and systemd read."""
    share = prefix / "share"
    if prefix == ADMINISTRATOR:
        return Places(Path("/etc/qemu/vhost-user"), Path("/etc/systemd/system"), share)
    return Places(
        share / "qemu/vhost-user", prefix / "lib/systemd/system", share, are_read=prefix == DISTRIBUTION
    )


def user_places(environment: Mapping[str, str] = os.environ) -> Places:
    """A user's own places. The user's libvirt (qemu:///session) and service manager read them."""
    config = _xdg(environment, "XDG_CONFIG_HOME", ".config")
    share = _xdg(environment, "XDG_DATA_HOME", ".local/share")
    return Places(config / "qemu/vhost-user", config / "systemd/user", share, user=True)


def _xdg(environment: Mapping[str, str], name: str, otherwise: str) -> Path:
    folder = Path(environment.get(name, ""))
    return folder if folder.is_absolute() else Path.home() / otherwise
