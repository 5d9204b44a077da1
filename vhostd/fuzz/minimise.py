"""Finds the least of a case that still shows its fault: first which operations, then which numbers."""

from collections.abc import Callable

from vhostd.fuzz.operation import Case

Fails = Callable[[Case], bool]


class Minimiser:
    """Makes cases smaller as long as each of them still `fails`, and `goes_on` is true."""

    def __init__(self, fails: Fails, goes_on: Callable[[], bool]) -> None:
        self._fails = fails
        self._goes_on = goes_on

    def minimise(self, case: Case) -> Case:
        """The smallest case that was found; at worst the case itself."""
        return self._simplify(self._reduce(case))

    def _reduce(self, case: Case) -> Case:
        """Leaves out pieces, halves first, until no single operation can be left out (delta debugging)."""
        piece = max(1, len(case) // 2)
        while True:
            at, before = 0, len(case)
            while at < len(case) and self._goes_on():
                less = case[:at] + case[at + piece :]
                if less and self._fails(less):
                    case = less
                else:
                    at += piece
            if (piece == 1 and len(case) == before) or not self._goes_on():
                return case
            piece = max(1, piece // 2)

    def _simplify(self, case: Case) -> Case:
        """Makes each operation as simple as it can be, one change at a time."""
        for at in range(len(case)):
            found = True
            while found:
                found = False
                for simpler in case[at].simpler():
                    less = (*case[:at], simpler, *case[at + 1 :])
                    if not self._goes_on():
                        return case
                    if self._fails(less):
                        case, found = less, True
                        break
        return case
