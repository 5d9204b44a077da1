from typing import Protocol

from typing_extensions import disjoint_base

from vhostd.ring.chain import Chain

class _Queue(Protocol):
    def push(self, chain: Chain) -> None: ...
    def flush(self) -> None: ...

@disjoint_base
class Shortcut:
    def take(self, queue: _Queue, chain: Chain) -> bool: ...
    def settle(self) -> int: ...
