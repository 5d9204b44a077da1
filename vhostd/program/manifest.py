"""What a program says of itself before any of it is loaded."""

import sys

from vhostd.program.command_line import CommandLine
from vhostd.program.start import start


class Manifest:
    """A program: the device that it is, and what `--print-capabilities` prints."""

    __slots__ = ("capabilities", "device", "type")

    def __init__(self, type: str, device: str | type[object], capabilities: tuple[str, ...] = ()) -> None:
        """`type` and `capabilities` are words of vhost-user.json, the latter of options that there are.

        `device` is a class derived from Device, or "module:Class" as long as it need not be loaded.
        """
        self.type = type
        self.device = device
        self.capabilities = capabilities

    def __str__(self) -> str:
        """The JSON object of QEMU's conventions for back-end programs."""
        # Plain words all of them; importing json would cost more than the rest of this.
        features = ", ".join(f'"{name}"' for name in self.capabilities)
        return f'{{"type": "{self.type}", "features": [{features}]}}'

    def main(self) -> int:
        """Runs the program and returns its exit status."""
        return start(self.device, CommandLine(sys.argv), capabilities=str(self))
