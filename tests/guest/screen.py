"""What QEMU shows on one of its screens, compared with what it should show."""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Self

from PIL import Image

from tests.guest.pattern import pattern
from tests.guest.qmp import Qmp

SCREEN_TIMEOUT = 20.0
PAUSE = 0.02  # seconds between two looks at a screen that does not show the expected picture yet


@dataclass(frozen=True)
class Picture:
    """Pixels of three bytes each, red, green and blue, row by row from the top left."""

    width: int
    height: int
    pixels: bytes

    @classmethod
    def of_seed(cls, width: int, height: int, seed: int) -> "Picture":
        """One of the pictures of pattern.py."""
        return cls(width, height, pattern(width, height, seed))

    @classmethod
    def load(cls, file: str | IO[bytes]) -> Self:
        """The picture in a file, such as a PNG."""
        with Image.open(file) as image:
            return cls(*image.size, image.convert("RGB").tobytes())

    def with_part(self, other: "Picture", left: int, top: int, right: int, bottom: int) -> "Picture":
        """This picture, and within the rectangle another of the same size."""
        pixels = bytearray(self.pixels)
        for y in range(top, bottom):
            row = slice(3 * (y * self.width + left), 3 * (y * self.width + right))
            pixels[row] = other.pixels[row]
        return Picture(self.width, self.height, bytes(pixels))

    def difference(self, expected: "Picture") -> str:
        """How this picture differs, as a clause; empty if it does not."""
        if (self.width, self.height) != (expected.width, expected.height):
            return f"it has {self.width}x{self.height} pixels, not {expected.width}x{expected.height}"
        if self.pixels == expected.pixels:
            return ""
        wrong = [at for at in range(self.width * self.height) if self._pixel(at) != expected._pixel(at)]
        y, x = divmod(wrong[0], self.width)
        is_there, belongs_there = self._pixel(wrong[0]), expected._pixel(wrong[0])
        return (
            f"{len(wrong)} of {self.width * self.height} pixels are wrong, "
            f"the first at x={x} y={y}: {is_there}, not {belongs_there}"
        )

    def wait_for(self, look: "Callable[[], Picture]", where: str, timeout: float) -> None:
        """Looks again and again until this is what is shown; AssertionError past `timeout`."""
        deadline = time.monotonic() + timeout
        while (shown := look()) != self:
            assert time.monotonic() < deadline, f"{where}: {shown.difference(self)}"
            time.sleep(PAUSE)

    def _pixel(self, at: int) -> str:
        return f"#{self.pixels[3 * at : 3 * at + 3].hex()}"


class Screen:
    """Screen number `head` of the display device with the id `device`."""

    def __init__(self, qmp: Qmp, device: str, head: int = 0) -> None:
        self._qmp = qmp
        self._arguments = {"device": device, "head": head}

    def picture(self) -> Picture:
        """What the screen shows now."""
        with tempfile.NamedTemporaryFile(prefix="vhostd-screen-", suffix=".png") as file:
            self._qmp.execute("screendump", {"filename": file.name, "format": "png", **self._arguments})
            return Picture.load(file.name)

    def wait_picture(self, expected: Picture, timeout: float = SCREEN_TIMEOUT) -> None:
        """Returns when the screen shows exactly this. Raises AssertionError past `timeout`.

        QEMU does not tell when it has painted, so this looks again and again.
        """
        screen = " ".join(f"{name} {value}" for name, value in self._arguments.items())
        expected.wait_for(self.picture, f"the screen of {screen}", timeout)

    def wait_seed(self, width: int, height: int, seed: int) -> None:
        """Returns when the screen shows this picture of pattern.py."""
        self.wait_picture(Picture.of_seed(width, height, seed))
