from typing import final

from typing_extensions import disjoint_base

from vhostd.ring.memory import GuestMemory

@disjoint_base
class WriteLog:
    def dirtied(self, guest_addr: int, length: int) -> None: ...

@final
class DirtyLog(WriteLog):
    def __new__(cls, memory: GuestMemory, size: int) -> DirtyLog: ...
    @staticmethod
    def footprint(last: int) -> int: ...
