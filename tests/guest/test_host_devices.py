"""vhost-user-blk on block devices that few hosts have: a guest makes them, whose kernel has them all."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest import kernel
from tests.guest.guest import CommandFailed, Guest
from tests.guest.modules import load_modules

pytestmark = pytest.mark.guest

SCRIPT = Path(__file__).parent / "inside" / "check_block_devices.py"
# A kernel module may ask for others without naming them: the first.
NEEDED = ("crc32c_generic", "null_blk", "dm_thin_pool", "brd", "loop", "sd_mod")
LATER = "scsi_debug"  # which the script loads again and again, with other parameters


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    with Guest(memory="768M") as guest:
        yield guest


def test_block_devices(guest: Guest, tmp_path: Path) -> None:
    load_modules(guest, tmp_path / "modules", *NEEDED)
    found = dict(kernel.module_files([LATER]))
    module = tmp_path / f"{LATER}.ko"
    module.write_bytes(found[LATER])
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", str(SCRIPT)]
    try:
        result = guest.call("run", argv=["env", f"SCSI_DEBUG={module}", *command], timeout=240)
    except CommandFailed as error:
        pytest.fail(str(error))
    print(result["output"])
    assert result["status"] == 0, result["output"]
    assert " passed" in result["output"]
