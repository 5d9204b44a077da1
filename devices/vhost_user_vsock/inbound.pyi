from typing_extensions import disjoint_base

from vhost_user_vsock.traffic import Traffic
from vhostd import Shortcut

@disjoint_base
class Inbound(Shortcut):
    def __init__(self, traffic: Traffic) -> None: ...
    def fileno(self) -> int: ...
