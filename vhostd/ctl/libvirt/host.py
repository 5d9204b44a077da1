"""What a host has, as far as it decides what libvirt reads, and which programs it can start."""

from collections.abc import Iterator
from pathlib import Path

from vhostd.ctl.libvirt.image import TOP, real
from vhostd.ctl.libvirt.json_text import JSON_C, TOLERANT, YAJL, Dialect
from vhostd.ctl.regular import open_regular

DRM = Path("/dev/dri")
LIBRARIES = ("usr/lib/*-linux-*", "usr/lib64", "usr/lib", "usr/local/lib*", "usr/local/lib/*-linux-*")
LIBVIRT, LIBJSON_C = "libvirt.so.0", "libjson-c.so.5"
LIBRARY_LIMIT = 64 << 20  # bytes that are read of one; libvirt's has some 10 MiB
MACHINE = slice(18, 20)  # in the head of an ELF file
SIGNED = {3, 8, 62, 258}  # machines whose char has a sign: x86, MIPS, LoongArch


def has_render_node() -> bool:
    """Whether there is a render node, which libvirt gives to programs that can take one."""
    return any(DRM.glob("renderD*"))


def json_dialect(root: Path = TOP) -> Dialect:
    """How the libvirt that is installed reads JSON; TOLERANT if there is none, or it cannot be known."""
    for folder in _library_folders(root):
        try:
            with open_regular(real(root, folder / LIBVIRT)) as file:
                library = file.read(LIBRARY_LIMIT)
        except OSError:
            continue
        if b"libyajl.so." in library:
            return YAJL
        if LIBJSON_C.encode() in library:
            return _json_c(root, library[MACHINE])
    return TOLERANT


def _json_c(root: Path, machine: bytes) -> Dialect:
    for folder in _library_folders(root):
        try:
            name = real(root, folder / LIBJSON_C).name  # it has the whole version, as in libjson-c.so.5.4.0
        except OSError:
            continue
        version = name.removeprefix(f"{LIBJSON_C}.").partition(".")[0]
        if version.isdecimal():
            found = JSON_C.get(int(version), JSON_C[max(JSON_C)])
            signed = int.from_bytes(machine, "little") in SIGNED
            return found._replace(beyond_ascii=found.beyond_ascii and signed)
    return TOLERANT


def _library_folders(root: Path) -> Iterator[Path]:
    """Folders of libraries below another root, as they are named there."""
    for pattern in LIBRARIES:
        for path in sorted(root.glob(pattern)):
            yield TOP / path.relative_to(root)
