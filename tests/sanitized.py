"""A pytest plugin for tests/run.sh: the run fails unless it was the sanitized build that was tested."""

import os
import sys
from pathlib import Path

RING = (
    "arrivals",
    "chain",
    "driver",
    "driver_packed",
    "gather",
    "inflight",
    "inflight_packed",
    "inflight_split",
    "iotlb",
    "memory",
    "notify",
    "packed",
    "ready",
    "ring",
    "shortcut",
    "split",
    "system_calls",
    "uring",
    "write_log",
)
DEVICES = (
    "vhost_user_blk.transfers",
    "vhost_user_console.transfers",
    "vhost_user_gpu.virgl.library",
    "vhost_user_net.merging",
    "vhost_user_net.receive",
    "vhost_user_net.segments",
    "vhost_user_net.transmit",
    "vhost_user_vsock.connection",
    "vhost_user_vsock.inbound",
    "vhost_user_vsock.outbound",
    "vhost_user_vsock.traffic",
)
MODULES = (*(f"vhostd.ring.{name}" for name in RING), *DEVICES)


def pytest_sessionfinish() -> None:
    tree = Path(os.environ["SANITIZED_TREE"])
    for name in MODULES:
        file = sys.modules[name].__file__
        assert file is not None
        assert Path(file).is_relative_to(tree), f"{file} was tested, which is not in {tree}"
        assert b"__asan_init" in Path(file).read_bytes(), f"{file} was built without AddressSanitizer"
        assert b"__ubsan_handle" in Path(file).read_bytes(), f"{file} was built without UBSan"
