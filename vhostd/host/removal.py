"""The removal of a file, to come: the sandbox lets through this one and no other."""

import os

from vhostd.host.folder import Folder
from vhostd.host.syscall import UNLINKAT, syscall


class Removal:
    """Removes what has this name in the folder, when it is called; raises OSError."""

    def __init__(self, folder: Folder, name: str) -> None:
        self.folder = folder
        self.name = name
        self.fixed = os.fsencode(name) + b"\0"
        self._address: int | None = None

    def take_name_from(self, address: int) -> None:
        """From now on the kernel is to read the name there (sandbox/names.py)."""
        self._address = address

    def __call__(self) -> None:
        if self._address is None:
            self.folder.remove(self.name)
        else:
            syscall(UNLINKAT, self.folder.fileno(), self._address, 0)
