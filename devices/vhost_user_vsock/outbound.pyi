from typing_extensions import disjoint_base

from vhost_user_vsock.traffic import Traffic
from vhostd import Shortcut

MOST_RESETS: int

@disjoint_base
class Outbound(Shortcut):
    def __init__(self, traffic: Traffic) -> None: ...
    def fileno(self) -> int: ...
    def flush(self) -> None: ...
