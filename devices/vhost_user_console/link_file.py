"""A symbolic link to a terminal, at a path that stays the same."""

import os
import stat
from contextlib import suppress

from vhostd import Folder, Grants, Removal, SetupError

TERMINALS = "/dev/pts/"


class LinkFile:
    """Makes a link at `path`, in place of one that another program has left there.

    Raises SetupError if that program still has its terminal, if anything else is there, or if the link cannot
    be made.
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
    """Removes a link to a terminal that is gone; SetupError for anything else."""
    with suppress(FileNotFoundError):
        link = os.stat(name, dir_fd=folder.fileno(), follow_symlinks=False)
        target = os.readlink(name, dir_fd=folder.fileno()) if stat.S_ISLNK(link.st_mode) else ""
        if not target.startswith(TERMINALS):
            raise SetupError(f"link={path}: what is there is no link to a terminal")
        if _is_older(target, link):
            raise SetupError(
                f"link={path}: it leads to {target}, which another program has; if none of yours does, "
                "remove the link"
            )
        folder.remove(name)


def _is_older(terminal: str, link: os.stat_result) -> bool:
    """Whether a terminal is there, and is the one that the link was made for.

    It goes with the program that has made it. Another one that gets its number is younger than the link.
    """
    try:
        return os.stat(terminal).st_ctime_ns <= link.st_ctime_ns
    except OSError:
        return False
