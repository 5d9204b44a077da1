from enum import IntFlag
from typing import Protocol

from typing_extensions import disjoint_base

from vhostd.ring.chain import Chain

class _Queue(Protocol):
    def push(self, chain: Chain) -> None: ...

class Outcome(IntFlag):
    LEFT = 0
    DONE = 1
    BEGUN = 2

@disjoint_base
class Shortcut:
    keeps: bool
    def serve(self, queue: _Queue, chain: Chain) -> int: ...
    def submit(self) -> None: ...
    def take(self, queue: _Queue, chain: Chain) -> bool: ...
