"""The stubs of the compiled modules say what the modules are."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import vhostd

# Until Python 3.12 the buffer protocol has no method that could be seen. What native modules share is no use
# to Python.
ALLOWED = r"""
vhostd\.ring\.memory\.Window\.__buffer__
vhostd\.ring\.\w+\.__pyx_capi__
"""


def test_stubs(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    allowed = tmp_path / "allowed"
    allowed.write_text(ALLOWED)
    root = str(Path(vhostd.__file__).parents[1])
    command = f"-m mypy.stubtest vhostd.ring --allowlist {allowed} --ignore-unused-allowlist"
    check = subprocess.run(
        [sys.executable, *command.split()],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": root, "MYPYPATH": root},
        capture_output=True,
        text=True,
        check=False,
    )
    assert check.returncode == 0, check.stdout + check.stderr
