from typing import final

from vhostd.ring.memory import GuestMemory

@final
class InflightQueue:
    def __new__(cls, area: GuestMemory, index: int, size: int) -> InflightQueue: ...
    @staticmethod
    def footprint(size: int) -> int: ...
    @property
    def size(self) -> int: ...
