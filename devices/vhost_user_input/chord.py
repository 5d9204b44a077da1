"""The key chord that gives a grabbed keyboard to the host, and back: both Control keys, as in QEMU."""

from collections.abc import Iterable

from vhost_user_input.events import EV_KEY, EV_SYN, SYN_REPORT

KEYS = frozenset((29, 97))  # KEY_LEFTCTRL, KEY_RIGHTCTRL


class Chord:
    """Follows events. A chord counts once all keys are up again: no side sees a press without its release."""

    def __init__(self) -> None:
        self._down: set[int] = set()
        self._together = False

    def follow(self, kind: int, code: int, value: int) -> bool:
        """Takes an event; True if it ends the report that completes the chord."""
        if kind == EV_KEY:
            self._down.add(code) if value else self._down.discard(code)
            self._together |= self._down >= KEYS
        elif self._together and not self._down and (kind, code) == (EV_SYN, SYN_REPORT):
            self._together = False
            return True
        return False

    def begin(self, held: Iterable[int]) -> None:
        """Starts anew, with these keys down."""
        self._down = set(held)
        self._together = False
