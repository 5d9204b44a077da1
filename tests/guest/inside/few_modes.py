"""Gives the first monitor an EDID without larger modes than WIDTH x HEIGHT, once its driver is bound again.

    python -m tests.guest.inside.few_modes WIDTH HEIGHT

A program that takes the largest mode of all, which glmark2 does, is slow without KVM.
"""

import sys
from pathlib import Path

from vhost_user_gpu.edid import edid

FIRMWARE = Path("/tmp/firmware")
KERNELS_ROOT = "/root"  # where the kernel sees /: tests/guest/init
MODULES = Path("/sys/module")

if __name__ == "__main__":
    FIRMWARE.mkdir(exist_ok=True)
    (FIRMWARE / "few_modes").write_bytes(edid(*map(int, sys.argv[1:])))
    (MODULES / "firmware_class/parameters/path").write_text(f"{KERNELS_ROOT}{FIRMWARE}")
    (MODULES / "drm/parameters/edid_firmware").write_text("Virtual-1:few_modes")
