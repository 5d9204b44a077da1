"""What the renderer keeps of the system: a GL driver's files and devices, and memory that becomes code."""

from vhostd import Grants, Ioctl, confine

# Libraries, their configuration, and what drivers ask the system of its devices.
FILES = (
    "/usr",
    "/lib",
    "/lib64",
    "/etc/ld.so.cache",
    "/etc/glvnd",
    "/etc/drirc",
    "/etc/nvidia",
    "/sys",
    "/proc/self",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/dev/null",
)
NODES = ("/dev/dri",)
# Where llvmpipe has the memory of its dmabufs from (Linux, include/uapi/linux/udmabuf.h: UDMABUF_CREATE).
UDMABUF = "/dev/udmabuf"
UDMABUF_CREATE = Ioctl.writing("u", 0x42, size=24)
# Linux, include/uapi: drm/drm.h, linux/dma-buf.h, linux/sync_file.h
TYPE = 0xFF00
IOCTLS = tuple(Ioctl(ord(kind) << 8, TYPE) for kind in "db>")
# Drivers name their threads and place them; they look for one another's fds, and lay memory out.
SYSTEM_CALLS = ("prctl", "sched_setaffinity", "sched_setscheduler", "sched_getscheduler", "kcmp", "mincore")


def confine_renderer(*, dmabuf: bool = False) -> None:
    """Gives up all the rest, for good; raises SetupError where there is no sandbox.

    With `dmabuf` it keeps what a software rasteriser makes dmabufs of.
    """
    devices, ioctls = (*NODES, UDMABUF) if dmabuf else NODES, (*IOCTLS, UDMABUF_CREATE) if dmabuf else IOCTLS
    confine(
        Grants(read=FILES, devices=devices, ioctls=ioctls, system_calls=SYSTEM_CALLS, code=("GL drivers",))
    )
