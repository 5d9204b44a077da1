"""Kernel modules that only some guests need, loaded while the guest runs."""

from pathlib import Path

from tests.guest import kernel
from tests.guest.guest import Guest
from tests.guest.initramfs import BUSYBOX

# Loads those of its arguments, files in the order of their names, that the guest does not have yet.
LOAD = """
for path; do
    name=${path##*/}; name=${name#*-}; name=${name%.ko}
    grep -q "^$name " /proc/modules || "$busybox" insmod "$path" || exit
done
"""


def load_modules(guest: Guest, directory: Path, *names: str) -> None:
    """Loads these modules and what they need; the guest reads them from `directory`, on the host."""
    directory.mkdir(exist_ok=True)
    paths = []
    for index, (name, content) in enumerate(kernel.module_files(names)):
        path = directory / f"{index:02}-{name}.ko"
        if not path.exists():
            path.write_bytes(content)
        paths.append(str(path))
    argv = ["env", f"busybox={BUSYBOX}", "sh", "-c", LOAD, "sh", *paths]
    done = guest.call("run", argv=argv)
    assert done["status"] == 0, done["output"]
