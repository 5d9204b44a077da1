"""The properties of a host that decide what libvirt reads, and which programs libvirt can start."""

from collections.abc import Iterator
from pathlib import Path

from vhostd.ctl.libvirt.image import TOP, real
from vhostd.ctl.libvirt.json_text import JSON_C, TOLERANT, YAJL, Dialect
from vhostd.ctl.regular import open_regular

DRM = Path("/dev/dri")
LIBRARIES = ("usr/lib/*-linux-*", "usr/lib64", "usr/lib", "usr/local/lib*", "usr/local/lib/*-linux-*")
LIBVIRT, LIBJSON_C = "libvirt.so.0", "libjson-c.so.5"
LIBRARY_LIMIT = 64 << 20  # bytes that are read of a library; libvirt's has some 10 MiB
MACHINE = slice(18, 20)  # e_machine, in the header of an ELF file
SIGNED = {3, 8, 62, 258}  # machines with a signed char in C: x86, MIPS, LoongArch


def has_render_node() -> bool:
    """Whether there is a render node. libvirt gives it to programs with the feature for it."""
    return any(DRM.glob("renderD*"))


def json_dialect(root: Path = TOP) -> Dialect:
    """The JSON dialect of the installed libvirt; TOLERANT if there is none, or it is unknown."""
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
            name = real(root, folder / LIBJSON_C).name  # with the whole version: libjson-c.so.5.4.0
        except OSError:
            continue
        version = name.removeprefix(f"{LIBJSON_C}.").partition(".")[0]
        if version.isdecimal():
            found = JSON_C.get(int(version), JSON_C[max(JSON_C)])
            signed = int.from_bytes(machine, "little") in SIGNED
            return found._replace(beyond_ascii=found.beyond_ascii and signed)
    return TOLERANT


def _library_folders(root: Path) -> Iterator[Path]:
    """The folders of libraries below a root, as paths inside of it."""
    for pattern in LIBRARIES:
        for path in sorted(root.glob(pattern)):
            yield TOP / path.relative_to(root)
