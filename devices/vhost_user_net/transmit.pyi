from collections.abc import Callable

from typing_extensions import disjoint_base

from vhostd import Shortcut

@disjoint_base
class Transmit(Shortcut):
    fd: int
    header: int
    stuck: Callable[[], None] | None
    sent: Callable[[], None] | None
    packets: int
    octets: int
    dropped: int
    @property
    def waits(self) -> bool: ...
    def clear(self) -> None: ...
    def flush(self) -> None: ...
    def send(self, frame: bytes) -> None: ...
    def __init__(self, lost: Callable[[str], None]) -> None: ...

class TapTransmit(Transmit): ...
class DatagramTransmit(Transmit): ...

@disjoint_base
class StreamTransmit(Transmit): ...
