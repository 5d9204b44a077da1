"""QEMU's disk tools as contrib/qemu-tools.sh has unpacked them: a front-end without a guest, and a peer.

They are of a newer Debian than this machine may be, with a C library of its own, so its loader starts them.
"""

from pathlib import Path

from tests.guest.kernel import cache_directory

SUITE = "trixie"
LIBRARIES = Path("usr/lib/x86_64-linux-gnu")


class ToolsMissing(Exception):
    """There are no such tools in the cache."""


def tool(name: str) -> list[str]:
    """The beginning of a command that runs `name`; the process keeps its pid. Raises ToolsMissing."""
    root = cache_directory() / f"qemu-tools-{SUITE}"
    if not root.is_dir():
        raise ToolsMissing(f"there is no {root}: run contrib/qemu-tools.sh")
    modules = f"QEMU_MODULE_DIR={root / LIBRARIES / 'qemu'}"
    loader = str(root / "usr/lib64/ld-linux-x86-64.so.2")
    return ["env", modules, loader, "--library-path", str(root / LIBRARIES), str(root / "usr/bin" / name)]


def qemu_img(*arguments: str) -> list[str]:
    """A command of qemu-img."""
    return [*tool("qemu-img"), *arguments]


def qemu_io(*arguments: str) -> list[str]:
    """A command of qemu-io; its commands follow as -c."""
    return [*tool("qemu-io"), *arguments]


def vhost_user(path: Path, *, read_only: bool = False) -> str:
    """What --image-opts opens: the disk behind the socket at `path`."""
    # The driver insists on cache.direct: nobody has a cache for it on this side.
    options = f"driver=virtio-blk-vhost-user,path={path},cache.direct=on,discard=unmap"
    return f"{options},read-only=on" if read_only else options


def storage_daemon(
    image: Path, path: Path, *, direct: bool = False, aio: str = "threads", iothread: bool = False
) -> list[str]:
    """A command of qemu-storage-daemon that serves `image` at `path`, as vhost-user-blk."""
    cache = "on" if direct else "off"
    export = f"type=vhost-user-blk,id=disk,addr.type=unix,addr.path={path},node-name=file,writable=on"
    return [
        *tool("qemu-storage-daemon"),
        *(["--object", "iothread,id=thread"] if iothread else []),
        f"--blockdev=driver=file,node-name=file,filename={image},cache.direct={cache},aio={aio},discard=unmap",
        f"--export={export},iothread=thread" if iothread else f"--export={export}",
    ]
