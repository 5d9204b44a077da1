"""Gives the first monitor an EDID without larger modes than WIDTH x HEIGHT, from its next resize on.

    python -m tests.guest.inside.few_modes WIDTH HEIGHT

A program that takes the largest mode of all, which glmark2 does, is slow without KVM.
"""

import subprocess
import sys
from pathlib import Path

from vhost_user_gpu.edid import edid

DEBUG = "/sys/kernel/debug"

if __name__ == "__main__":
    subprocess.run(["mount", "-t", "debugfs", "debugfs", DEBUG], check=True)
    Path(DEBUG, "dri/0/Virtual-1/edid_override").write_bytes(edid(*map(int, sys.argv[1:])))
