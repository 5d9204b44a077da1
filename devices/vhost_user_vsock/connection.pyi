from socket import SocketType

class Connection:
    guest_cid: int
    host_cid: int
    guest_port: int
    host_port: int
    kind: int
    sock: SocketType | None
    is_call: bool
    detached: bool
    established: bool
    told: int
    heard: int
    deaf: bool
    def __init__(
        self,
        sock: SocketType,
        kind: int,
        *,
        guest_cid: int,
        guest_port: int,
        host_cid: int,
        host_port: int,
        buf_alloc: int,
        is_call: bool = False,
    ) -> None: ...
    def grant(self, buf_alloc: int, fwd_cnt: int) -> None: ...
    @property
    def backlog(self) -> int: ...
