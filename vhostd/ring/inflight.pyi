from typing_extensions import disjoint_base

from vhostd.ring.memory import GuestMemory

@disjoint_base
class InflightQueue:
    def __new__(cls, area: GuestMemory, index: int, size: int) -> InflightQueue: ...
    @staticmethod
    def footprint(size: int) -> int: ...
    @property
    def size(self) -> int: ...
