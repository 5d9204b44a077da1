"""A symbolic link to a terminal, at a path that stays the same."""

import os
import stat
from contextlib import suppress

from vhostd import Folder, Grants, Removal, SetupError

TERMINALS = "/dev/pts/"


class LinkFile:
    """Makes a link at `path`, in place of one that another program has left there.

    Raises SetupError if anything else is there, or if the link cannot be made.
    """

    def __init__(self, path: str, target: str) -> None:
        self.path = path
        place, name = os.path.split(path)
        try:
            self._folder = Folder(place)
        except OSError as error:
            raise SetupError(f"link={path}: {error.strerror}") from None
        self._removal = Removal(self._folder, name)
        try:
            _remove_stale(self._folder, name, path)
            os.symlink(target, name, dir_fd=self._folder.fileno())
            self._name, self._made = name, self._folder.pin(name)
        except OSError as error:
            self._folder.close()
            raise SetupError(f"link={path}: {error.strerror}") from None
        except SetupError:
            self._folder.close()
            raise

    def grants(self) -> Grants:
        """The link's removal."""
        return Grants(removed=(self._removal,))

    def remove(self) -> None:
        """Removes the link, if no other file has replaced it."""
        with self._made:
            if self._folder.has(self._name, self._made):
                with suppress(OSError):
                    self._removal()
        self._folder.close()


def _remove_stale(folder: Folder, name: str, path: str) -> None:
    """Removes a link to a terminal; SetupError for anything else."""
    with suppress(FileNotFoundError):
        status = os.stat(name, dir_fd=folder.fileno(), follow_symlinks=False)
        is_link = stat.S_ISLNK(status.st_mode)
        if not is_link or not os.readlink(name, dir_fd=folder.fileno()).startswith(TERMINALS):
            raise SetupError(f"link={path}: what is there is no link to a terminal")
        folder.remove(name)
