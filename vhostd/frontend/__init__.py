"""The other side of the socket: a front-end to script, for tests and for trying a device out."""

from vhostd.frontend.frontend import Frontend
from vhostd.frontend.iommu import Iommu
from vhostd.frontend.memory import SharedMemory
from vhostd.frontend.queue import Queue, signalled

__all__ = ["Frontend", "Iommu", "Queue", "SharedMemory", "signalled"]
