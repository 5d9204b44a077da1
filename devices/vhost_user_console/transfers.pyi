from collections.abc import Callable

from typing_extensions import disjoint_base

from vhostd import Shortcut

@disjoint_base
class Input(Shortcut):
    fd: int

    def __init__(self, heard: Callable[[], None] | None, ended: Callable[[int], None]) -> None: ...

@disjoint_base
class Output(Shortcut):
    fd: int
