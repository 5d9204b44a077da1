"""What each program can still call: what its device needs, and nothing that only another one does."""

import subprocess
import sys
from pathlib import Path

import pytest

from vhostd.program.sandbox.seccomp import LIBRARY

CHECKOUT = Path(__file__).parents[3]
# Makes the device of a program, gives up the rest, and tells which system calls are left.
CHILD = """
import ctypes, errno, importlib, os, sys
from vhostd.program.command_line import CommandLine
from vhostd.program.options import parse
from vhostd.program.sandbox import confine

module, name, file, *arguments = sys.argv[1:]
kind = getattr(importlib.import_module(module + ".device"), name)
device = kind.from_options(parse(kind, CommandLine(["program", *arguments])))
fd = os.open(file, os.O_RDWR)
library = ctypes.CDLL("LIBRARY")
number = library.seccomp_syscall_resolve_name(b"io_uring_enter")
libc = ctypes.CDLL(None, use_errno=True)

def enter_a_ring():
    if libc.syscall(ctypes.c_long(number), fd, 0, 0, 0, None, 0):
        raise OSError(ctypes.get_errno(), "")

tries = {
    "fdatasync": lambda: os.fdatasync(fd),
    "fallocate": lambda: os.posix_fallocate(fd, 0, 1),
    "pwrite64": lambda: os.pwrite(fd, b"x", 0),
    "pwritev2": lambda: os.pwritev(fd, [b"x"], 0, os.RWF_DSYNC),
    "io_uring_enter": enter_a_ring,
    "fsync": lambda: os.fsync(fd),
    "read": lambda: os.read(fd, 1),
}

def is_left(call):
    try:
        call()
    except OSError as error:
        return error.errno != errno.EPERM
    return True

confine(device.grants())
print(*(name for name, call in tries.items() if is_left(call)))
""".replace("LIBRARY", LIBRARY)
WRITING = {"fdatasync", "fallocate", "pwrite64", "pwritev2"}


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["vhost_user_rng", "Rng"], set()),
        (["vhost_user_console", "Console"], {"pwritev2"}),
        (["vhost_user_gpu", "Gpu"], set()),
        (["vhost_user_input", "Input", "--event-socket=EVENTS"], set()),
        (["vhost_user_blk", "Blk", "--ram=1M", "--aio=sync"], WRITING),
        (["vhost_user_blk", "Blk", "--ram=1M", "--aio=threads"], WRITING),
        (["vhost_user_blk", "Blk", "--ram=1M", "--aio=io_uring"], {*WRITING, "io_uring_enter"}),
        (["vhost_user_blk", "Blk", "--blk-file=FILE", "--read-only", "--aio=sync"], set()),
    ],
    ids=lambda value: "-".join(value[1:]) if isinstance(value, list) else "",
)
def test_what_is_left(command: list[str], expected: set[str], tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(1 << 16))
    module, name, *options = command
    options = [
        each.replace("FILE", str(file)).replace("EVENTS", str(tmp_path / "events")) for each in options
    ]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, module, name, str(file), *options],
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert set(done.stdout.split()) == {*expected, "read"}
