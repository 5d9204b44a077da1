from typing_extensions import disjoint_base

@disjoint_base
class WriteLog:
    def dirtied(self, guest_addr: int, length: int) -> None: ...
