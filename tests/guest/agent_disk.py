"""The agent's commands about disks."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.guest.agent_loop import Loop


class DiskCommands:
    """Waiting for what the kernel says of a disk in /sys/block."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop

    def table(self) -> dict[str, Callable[..., Any]]:
        """The commands by name."""
        return {"wait_disk": self.wait_disk}

    def wait_disk(self, name: str, attributes: Mapping[str, str]) -> None:
        """Waits until the disk is there and each of these files in its directory has that text."""

        def found() -> dict[str, str]:
            return {path: text(Path("/sys/block", name, path)) for path in attributes}

        try:
            self._loop.wait(lambda: found() == attributes, f"the disk {name}")
        except TimeoutError as error:
            raise TimeoutError(f"{error}: {found()} instead of {attributes}") from None


def text(path: Path) -> str:
    """A file's text, empty if it does not exist (yet, or any more)."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
