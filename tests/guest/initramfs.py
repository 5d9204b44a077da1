"""The guest's initramfs: busybox, kernel modules and the script `init`, as a newc cpio archive."""

import hashlib
import stat
from collections.abc import Sequence
from pathlib import Path

from tests.guest import kernel

BUSYBOX = Path("/bin/busybox")
INIT = Path(__file__).with_name("init")
CONSOLE = (5, 1)

# The drivers for the devices under test and for the guest's own plumbing, loaded in this order.
MODULES = (
    "virtio_pci",
    "virtio_console",
    "9p",
    "9pnet_virtio",
    "overlay",
    "evdev",
    "uinput",
    "virtio_input",
    "virtio_rng",
    "virtio_gpu",
    "virtio_blk",
)


class Archive:
    """A cpio archive in the making (Linux: Documentation/driver-api/early-userspace/buffer-format.rst)."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._inode = 0

    def directory(self, name: str) -> None:
        """Adds an empty directory."""
        self._entry(name, stat.S_IFDIR | 0o755)

    def character_device(self, name: str, major: int, minor: int) -> None:
        """Adds a device node."""
        self._entry(name, stat.S_IFCHR | 0o600, device=(major, minor))

    def program(self, name: str, content: bytes) -> None:
        """Adds an executable file."""
        self._entry(name, stat.S_IFREG | 0o755, content)

    def finish(self) -> bytes:
        """The whole archive."""
        self._entry("TRAILER!!!", 0)
        return bytes(self._data)

    def _entry(self, name: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        self._inode += 1
        path = name.encode() + b"\0"
        # ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdev*, namesize, check
        fields = (self._inode, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(path), 0)
        self._data += b"070701" + b"".join(b"%08X" % field for field in fields) + path
        self._pad()
        self._data += content
        self._pad()

    def _pad(self) -> None:
        self._data += bytes(-len(self._data) % 4)


def initramfs(init: Path = INIT, modules: Sequence[str] = MODULES) -> Path:
    """The initramfs for the cached kernel; made when it, busybox or a file here has changed.

    Raises KernelMissing, FileNotFoundError (no busybox).
    """
    directory = kernel.kernel_directory()
    inputs = [Path(__file__), Path(kernel.__file__), init, BUSYBOX]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in inputs)).hexdigest()[:16]
    return kernel.cached(directory / f"initramfs-{digest}", lambda: _make(init, modules))


def _make(init: Path, modules: Sequence[str]) -> bytes:
    archive = Archive()
    for name in ("bin", "dev", "host", "modules", "proc", "root", "sys", "written"):
        archive.directory(name)
    # The kernel opens the console before `init` mounts /dev.
    archive.character_device("dev/console", *CONSOLE)
    archive.program("bin/busybox", BUSYBOX.read_bytes())
    archive.program("init", init.read_bytes())
    for index, (name, content) in enumerate(kernel.module_files(modules)):
        archive.program(f"modules/{index:02}-{name}.ko", content)
    return archive.finish()
