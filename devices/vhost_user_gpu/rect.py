"""Rectangles, in pixels."""

from collections.abc import Iterator
from typing import NamedTuple


class Rect(NamedTuple):
    """A rectangle's position and size. No number is negative. An empty rectangle is falsy."""

    x: int
    y: int
    width: int
    height: int

    def __bool__(self) -> bool:
        return self.width > 0 and self.height > 0

    @property
    def right(self) -> int:
        """The first column to the right of it."""
        return self.x + self.width

    @property
    def bottom(self) -> int:
        """The first row below it."""
        return self.y + self.height

    def fits(self, width: int, height: int) -> bool:
        """Whether it lies wholly inside a picture of this size."""
        return self.right <= width and self.bottom <= height

    def moved(self, dx: int, dy: int) -> "Rect":
        """The rectangle at another position."""
        return Rect(self.x + dx, self.y + dy, self.width, self.height)

    def common(self, other: "Rect") -> "Rect":
        """The intersection of both; NOTHING if it is empty."""
        x, y = max(self.x, other.x), max(self.y, other.y)
        width, height = min(self.right, other.right) - x, min(self.bottom, other.bottom) - y
        return Rect(x, y, width, height) if width > 0 and height > 0 else NOTHING

    def around(self, other: "Rect") -> "Rect":
        """The smallest rectangle that holds both."""
        if not self or not other:
            return self or other
        x, y = min(self.x, other.x), min(self.y, other.y)
        return Rect(x, y, max(self.right, other.right) - x, max(self.bottom, other.bottom) - y)

    def bands(self, rows: int) -> Iterator["Rect"]:
        """The rectangle in bands of at most `rows` rows, but at least one, from top to bottom."""
        step = max(rows, 1)
        for y in range(self.y, self.bottom, step):
            yield Rect(self.x, y, self.width, min(step, self.bottom - y))


NOTHING = Rect(0, 0, 0, 0)
