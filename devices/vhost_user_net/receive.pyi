from collections.abc import Callable

from typing_extensions import disjoint_base

from vhostd import Shortcut

@disjoint_base
class Receive(Shortcut):
    fd: int
    patience: float
    packets: int
    octets: int
    dropped: int
    def __init__(self, lost: Callable[[str], None]) -> None: ...
    def negotiate(self, header: int, *, mergeable: bool) -> None: ...
    def clear(self) -> None: ...

@disjoint_base
class PacketReceive(Receive): ...

class TapReceive(PacketReceive): ...
class DatagramReceive(PacketReceive): ...

@disjoint_base
class StreamReceive(Receive): ...
