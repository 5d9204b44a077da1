from typing import final

from typing_extensions import disjoint_base

from vhost_user_blk.requests import Requests
from vhostd import Shortcut
from vhostd.storage import STEP as STEP

@disjoint_base
class Transfers(Shortcut):
    read_flags: int
    write_flags: int
    def __init__(self, requests: Requests) -> None: ...

@final
class Flight:
    def __call__(self, result: int) -> None: ...
