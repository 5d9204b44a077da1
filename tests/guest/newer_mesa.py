"""A Python for the guest with Debian 13's Mesa, which contrib/mesa.sh unpacks; it is else the tests' own."""

import os
import sys
from pathlib import Path

from tests.guest.guest import Guest
from tests.guest.kernel import cache_directory

DEVICES = Path(__file__).parents[2] / "devices"
PLACE = "/usr/lib/newer-mesa"  # below a folder that renderers may read
LOADER = f"{PLACE}/usr/lib64/ld-linux-x86-64.so.2 --library-path {PLACE}/usr/lib/x86_64-linux-gnu"


def python_with_newer_mesa(guest: Guest, directory: Path) -> Path:
    """Makes it in a directory of the host, and gives the guest the libraries."""
    python = directory / "python"
    path = os.pathsep.join((*filter(None, sys.path), str(DEVICES)))
    real = os.path.realpath(sys.executable)
    python.write_text(f'#!/bin/sh\nPYTHONPATH={path} exec {LOADER} --argv0 "$0" {real} "$@"\n')
    python.chmod(0o755)
    mount = f"mkdir -p {PLACE} && mount --bind {cache_directory() / 'mesa-trixie'} {PLACE}"
    done = guest.call("run", argv=["sh", "-c", mount])
    assert done["status"] == 0, done["output"]
    return python
