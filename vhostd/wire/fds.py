"""Owned file descriptors: the holder of an `Fd` closes it, exactly once."""

import os
import warnings
from collections.abc import Iterable
from types import TracebackType


class Fd:
    """Owns one open file descriptor until `close` or `take`.

    An `Fd` that is lost while it is open closes the descriptor and warns (ResourceWarning).
    """

    __slots__ = ("_number",)

    def __init__(self, number: int) -> None:
        self._number = number

    def fileno(self) -> int:
        """The descriptor's number; raises ValueError once it is closed or taken."""
        if self._number < 0:
            raise ValueError("the file descriptor is closed")
        return self._number

    def take(self) -> int:
        """Gives the descriptor up: the caller owns the returned number."""
        number = self.fileno()
        self._number = -1
        return number

    def close(self) -> None:
        """Closes the descriptor; idempotent."""
        if self._number >= 0:
            os.close(self.take())

    def __bool__(self) -> bool:
        return self._number >= 0

    def __enter__(self) -> "Fd":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Fd({self._number})" if self else "Fd(closed)"

    def __del__(self) -> None:
        if self:
            lost = repr(self)
            self.close()  # first: a warning may be an error
            warnings.warn(f"{lost} was never closed", ResourceWarning, stacklevel=2)


def close_all(fds: Iterable[Fd]) -> None:
    """Closes every descriptor that is still owned."""
    for fd in fds:
        fd.close()
