"""A block device of this host over a file; only root can have one."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def loop_device(file: Path, sector_size: int = 4096) -> Iterator[str]:
    """The path of a device whose logical blocks have this size; skips the test where there can be none."""
    command = ["losetup", "--find", "--show", f"--sector-size={sector_size}", str(file)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no loop devices here: {getattr(error, 'stderr', error)}")
    try:
        yield done.stdout.strip()
    finally:
        subprocess.run(["losetup", "--detach", done.stdout.strip()], check=True)
