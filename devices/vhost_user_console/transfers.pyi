from collections.abc import Callable

from typing_extensions import disjoint_base

from vhostd import Shortcut

@disjoint_base
class Backlog:
    most: int
    dropped: int

    def __init__(self, most: int) -> None: ...
    def __len__(self) -> int: ...
    def add(self, data: bytes) -> None: ...
    def head(self, most: int) -> bytes: ...
    def remove(self, count: int) -> None: ...

@disjoint_base
class Input(Shortcut):
    fd: int

    def __init__(self, heard: Callable[[], None] | None, ended: Callable[[], None]) -> None: ...

@disjoint_base
class Output(Shortcut):
    fd: int
    keeps: bool

    def __init__(self, backlog: Backlog) -> None: ...
