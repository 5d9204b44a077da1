"""What an fd is, by the kernel."""

import os
import socket
from pathlib import Path

from vhostd.trace.passed import describe
from vhostd.trace.stand_ins import StandIns
from vhostd.wire.fds import Fd


def test_eventfds() -> None:
    with Fd(os.eventfd(0)) as one, Fd(os.dup(one.fileno())) as same, Fd(os.eventfd(0)) as other:
        assert str(describe(one)) == "eventfd"
        assert describe(one) == describe(same) != describe(other)


def test_memory() -> None:
    with Fd(os.memfd_create("guest")) as fd:
        for size, shown in ((3 << 20, "3 MiB"), (1 << 31, "2 GiB"), (4097, "4097 B"), (0, "0 B")):
            os.ftruncate(fd.fileno(), size)
            assert str(describe(fd)) == f"memfd {shown}"


def test_files_and_sockets(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(2048))
    for path, expected in (
        (tmp_path / "file", f"file {tmp_path}/file 2 KiB"),
        (tmp_path, f"folder {tmp_path}"),
        (Path("/dev/null"), "device /dev/null"),
    ):
        with Fd(os.open(path, os.O_RDONLY)) as fd:
            assert str(describe(fd)) == expected
    ours, theirs = socket.socketpair()
    with theirs, Fd(ours.detach()) as fd:
        assert str(describe(fd)) == "socket"


def test_pipes() -> None:
    with Fd((pipe := os.pipe())[0]) as reading, Fd(pipe[1]) as writing:
        assert [str(describe(fd)) for fd in (reading, writing)] == ["read pipe", "write pipe"]


def test_a_stand_in_is_of_the_same_kind_and_the_same_for_the_same() -> None:
    fds = StandIns()
    with Fd(os.memfd_create("guest")) as memory, Fd(os.eventfd(0)) as eventfd:
        os.ftruncate(memory.fileno(), 8192)
        for original in (memory, eventfd):
            one, again = (fds.of(describe(original)) for _ in range(2))
            assert describe(one) == describe(again) != describe(original)
            assert str(describe(one)) == str(describe(original))
            one.close()
            again.close()
        fds.learn(describe(memory), Fd(os.dup(memory.fileno())))
        with fds.of(describe(memory)) as learnt:
            assert describe(learnt) == describe(memory)
    with Fd((pipe := os.pipe())[0]) as reading, Fd(pipe[1]) as writing:
        for original in (reading, writing):
            with fds.of(describe(original)) as stand_in:
                assert describe(stand_in).kind == describe(original).kind
    ours, theirs = socket.socketpair()
    with theirs, Fd(ours.detach()) as original, fds.of(describe(original)) as stand_in:
        assert describe(stand_in).kind == "socket"
    with Fd(os.open("/dev/null", os.O_RDONLY)) as original, fds.of(describe(original)) as stand_in:
        assert str(describe(stand_in)) == "device /dev/null"
    fds.close()
