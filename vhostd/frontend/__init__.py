"""The other side of the socket: a front-end to script, for tests, checks and benchmarks."""

from vhostd.frontend.frontend import Frontend
from vhostd.frontend.memory import SharedMemory
from vhostd.frontend.queue import Queue

__all__ = ["Frontend", "Queue", "SharedMemory"]
