"""The other side of the socket: a front-end to script, to test any back-end, or to try a device out.

    a program           Backend
    the protocol        Frontend; BackendRequests, Iommu and SharedObjects for what a back-end asks
    the guest's memory  SharedMemory; Postcopy, for pages that come late
    rings               Queue, Pipeline; signalled
    drivers             BlockDriver, GpuDriver with Framebuffer and GpuDisplay, InputDriver, NetDriver,
                        RngDriver
    nonsense            raw_message, `Frontend.send_raw`, and the rings themselves: `Queue.driver`

`docs/testing-a-backend.md` shows how they go together.
"""

from vhostd.frontend.backend import Backend
from vhostd.frontend.drivers import (
    BlockDriver,
    Framebuffer,
    GpuDisplay,
    GpuDriver,
    InputDriver,
    NetDriver,
    RngDriver,
    VsockDriver,
)
from vhostd.frontend.frontend import Frontend
from vhostd.frontend.iommu import Iommu
from vhostd.frontend.memory import SharedMemory
from vhostd.frontend.pipeline import Pipeline
from vhostd.frontend.postcopy import Postcopy
from vhostd.frontend.queue import Queue, signalled
from vhostd.frontend.raw import raw_message
from vhostd.frontend.requests import BackendRequests
from vhostd.frontend.shared_objects import SharedObjects

__all__ = [
    "Backend",
    "BackendRequests",
    "BlockDriver",
    "Framebuffer",
    "Frontend",
    "GpuDisplay",
    "GpuDriver",
    "InputDriver",
    "Iommu",
    "NetDriver",
    "Pipeline",
    "Postcopy",
    "Queue",
    "RngDriver",
    "SharedMemory",
    "SharedObjects",
    "VsockDriver",
    "raw_message",
    "signalled",
]
