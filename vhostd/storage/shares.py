"""Shares of what there is only so much of; whoever asks waits for his turn."""

from collections import deque
from collections.abc import Callable


class Shares:
    """So many shares, taken and given back, first come, first served.

    Who takes all of them is alone: those before have given theirs back, those after wait.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = count
        self._dealing = False
        self._waiting: deque[tuple[int, Callable[[], None]]] = deque()

    def take(self, count: int, begin: Callable[[], None]) -> None:
        """Calls `begin` when so many are there for it: at once, or when others give theirs back."""
        self._waiting.append((count, begin))
        self._deal()

    def give(self, count: int) -> None:
        """Gives so many back."""
        self._free += count
        self._deal()

    def _deal(self) -> None:
        if self._dealing:  # by whoever called what gives back at once, and who goes on
            return
        self._dealing = True
        try:
            while self._waiting and self._waiting[0][0] <= self._free:
                count, begin = self._waiting.popleft()
                self._free -= count
                begin()
        finally:
            self._dealing = False
