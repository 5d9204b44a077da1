"""The guest's kernel: a Debian kernel package that contrib/setup.sh unpacked into the user's cache."""

import lzma
import os
import re
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

XZ_MAGIC = b"\xfd7zXZ\0"
SIGNATURE_MARK = b"~Module signature appended~\n"


class KernelMissing(Exception):
    """There is no kernel in the cache."""


def cache_directory() -> Path:
    """Where contrib/setup.sh and this module keep what takes long to fetch or to make."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "vhostd"


def kernel_directory() -> Path:
    """The unpacked kernel package. Raises KernelMissing."""
    directory = cache_directory() / "linux"
    if not directory.is_dir():
        raise KernelMissing(f"there is no kernel in {directory}: run contrib/setup.sh")
    return directory.resolve()


def cached(path: Path, make: Callable[[], bytes]) -> Path:
    """`path`, made now if it does not exist; other processes never see half of it."""
    if not path.exists():
        partial = path.with_name(f"{path.name}.{os.getpid()}")
        partial.write_bytes(make())
        partial.rename(path)
    return path


def boot_image() -> Path:
    """The kernel to boot: an uncompressed ELF file where possible, the packaged file otherwise.

    QEMU starts an ELF kernel directly (PVH). Without KVM that saves three seconds, which the packaged
    kernel needs to decompress itself.
    """
    directory = kernel_directory()
    elf = directory / "vmlinux"
    if elf.exists():
        return elf
    packaged = next(directory.glob("boot/vmlinuz-*"))
    payload = _payload(packaged.read_bytes())
    if not payload.startswith(XZ_MAGIC):
        return packaged
    return cached(elf, lambda: _decompress(payload))


def _payload(image: bytes) -> bytes:
    """The compressed kernel in a bzImage (Linux: Documentation/x86/boot.rst)."""
    setup_sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    return image[start : start + length]


def _decompress(data: bytes) -> bytes:
    # Four bytes with the unpacked size follow the xz stream: LZMADecompressor stops before them.
    return lzma.LZMADecompressor().decompress(data)


def module_files(names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """These modules and what they need as (name, file content), in an order they can be loaded in.

    Built-in modules are left out. Signatures are cut off: checking them takes time and the guest's
    kernel does not insist on them.
    """
    paths = {_module_name(path): path for path in kernel_directory().rglob("lib/modules/**/*.ko*")}
    done: set[str] = set()

    def visit(name: str) -> Iterator[tuple[str, bytes]]:
        if name in done or name not in paths:
            return
        done.add(name)
        content = _module_content(paths[name])
        for needed in _needed_modules(content):
            yield from visit(needed)
        yield name, content

    for name in names:
        yield from visit(name)


def _module_name(path: Path) -> str:
    return path.name.partition(".")[0].replace("-", "_")


def _module_content(path: Path) -> bytes:
    content = path.read_bytes()
    if path.suffix == ".xz":
        content = lzma.decompress(content)
    if not content.endswith(SIGNATURE_MARK):
        return content
    # Before the mark: struct module_signature, 12 bytes that end in the signature's length.
    length = int.from_bytes(content[-len(SIGNATURE_MARK) - 4 : -len(SIGNATURE_MARK)], "big")
    return content[: -len(SIGNATURE_MARK) - 12 - length]


def _needed_modules(content: bytes) -> list[str]:
    """The modules named in the `depends=` field of the .modinfo section."""
    found = re.search(rb"\0depends=([^\0]*)\0", content)
    names = found.group(1).decode().split(",") if found else []
    return [name.replace("-", "_") for name in names if name]
