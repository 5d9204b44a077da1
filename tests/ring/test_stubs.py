"""The stubs of the compiled modules say what the modules are."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import vhost_user_blk
import vhostd

# Until Python 3.12 the buffer protocol has no method that could be seen. What native modules share is no use
# to Python.
ALLOWED = r"""
vhostd\.ring\.memory\.Window\.__buffer__
vhostd\.ring\.\w+\.__pyx_capi__
vhostd\.ring\.arrivals\.Pages
vhostd\.ring\.chain\.InFlight
vhostd\.ring\.iotlb\.Extents
vhostd\.ring\.memory\.Row
"""


@pytest.mark.parametrize(
    "package", ["vhostd.ring", "vhost_user_blk.transfers", "vhost_user_console.transfers"]
)
def test_stubs(package: str, tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    allowed = tmp_path / "allowed"
    allowed.write_text(ALLOWED)
    roots = os.pathsep.join(str(Path(str(each.__file__)).parents[1]) for each in (vhostd, vhost_user_blk))
    config = tmp_path / "mypy.ini"
    config.write_text("[mypy]\nignore_missing_imports = true\n")
    command = f"-m mypy.stubtest {package} --allowlist {allowed} --ignore-unused-allowlist"
    check = subprocess.run(
        [sys.executable, *command.split(), f"--mypy-config-file={config}"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": roots, "MYPYPATH": roots},
        capture_output=True,
        text=True,
        check=False,
    )
    assert check.returncode == 0, check.stdout + check.stderr
