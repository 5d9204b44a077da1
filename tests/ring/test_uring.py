"""io_uring: bytes land where they belong, results and tokens come back, memory outlives what is in flight."""

import asyncio
import ctypes
import errno
import gc
import mmap
import os
import select
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import PATIENCE, Run, held
from tests.ring.machine import DATA, END, GUEST, SEAM, SIZE, Machine, memfd
from tests.ring.test_lost_memory import PAGE, Shrinking
from vhostd import ring
from vhostd.errors import BadRequest, MemoryLost
from vhostd.ring import Chain, GuestMemory
from vhostd.ring.uring import Uring

PATTERN = bytes((i ^ i >> 8) % 256 for i in range(SIZE))
KEEP_SIZE, PUNCH_HOLE = 1, 2  # of fallocate
HUGE = [-1, 2**63, 2**64, 2**70, -(2**70)]


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = Machine(16)
    yield machine
    machine.close()


@pytest.fixture
def uring() -> Iterator[Uring]:
    uring = Uring(8)
    yield uring
    uring.close()


@pytest.fixture
def file() -> Iterator[int]:
    fd = memfd(0)
    os.write(fd, PATTERN)
    yield fd
    os.close(fd)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """What is read from it stays in flight until something is written."""
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)
    os.close(writer)


def take(uring: Uring, n: int) -> list[tuple[object, int]]:
    """The next `n` completions."""
    found: list[tuple[object, int]] = []
    while len(found) < n:
        assert select.select([uring], [], [], PATIENCE)[0], "no completion came"
        found += uring.completions()
    assert len(found) == n
    return found


def result(uring: Uring) -> int:
    """Submits what is queued; the result of the only request in flight."""
    uring.submit()
    [(_, result)] = take(uring, 1)
    assert uring.in_flight == 0
    return result


def chain_of(machine: Machine, size: int = 4, *, addr: int = DATA) -> Chain:
    return machine.chain([(addr, size, False), (addr, size, True)])


def mapped() -> int:
    """How many bytes of guests' memory this process has mapped."""
    lines = [line for line in held() if " rw-s " in line and "memfd:guest" in line]
    bounds = [line.split()[0].split("-") for line in lines]
    return sum(int(end, 16) - int(start, 16) for start, end in bounds)


# --- Bytes ------------------------------------------------------------------------------------------------


def test_preadv(machine: Machine, uring: Uring, file: int) -> None:
    chain = machine.chain([(DATA + 1, 3, True), (SEAM - 2, 4, True), (DATA + 9, 1, True)])
    uring.preadv(chain, file, 10, 7, None)
    assert result(uring) == 7
    assert (chain.writable, chain.written) == (1, 7)
    assert machine.memory.read(DATA + 1, 3) + machine.memory.read(SEAM - 2, 4) == PATTERN[10:17]
    assert machine.memory.read(DATA + 9, 1) == b"\0"


def test_pwritev(machine: Machine, uring: Uring, file: int) -> None:
    machine.memory.write(SEAM - 2, b"abcdef")
    chain = machine.chain([(SEAM - 2, 3, False), (SEAM + 1, 4, False)])
    uring.pwritev(chain, file, 100, 6, None)
    assert result(uring) == 6
    assert os.pread(file, 8, 99) == PATTERN[99:100] + b"abcdef" + PATTERN[106:107]
    assert (chain.readable, chain.written) == (1, 0)


def test_end_of_the_file(machine: Machine, uring: Uring, file: int) -> None:
    chain = chain_of(machine, 8)
    uring.preadv(chain, file, SIZE - 3, 8, None)
    assert result(uring) == 3
    uring.preadv(chain, file, SIZE, 5, None)  # the rest
    assert result(uring) == 0
    assert (chain.writable, chain.written) == (5, 3)


def test_nothing_to_move(machine: Machine, uring: Uring, file: int) -> None:
    for chain in (chain_of(machine), machine.chain([(DATA, 0, True)])):
        uring.preadv(chain, file, 0, 0, None)
        assert result(uring) == 0
        assert chain.written == 0


def test_more_pieces_than_a_system_call_takes(uring: Uring, file: int) -> None:
    machine = Machine(1024)
    chain = machine.chain([(SEAM - 1, 2, True)] * 1024)  # 2048 pieces
    for left in (1024, 0):
        uring.preadv(chain, file, 0, chain.writable, None)
        assert result(uring) == 1024
        assert chain.writable == left
    few = chain_of(Machine())  # in the place of one with many
    uring.preadv(few, file, 0, 4, None)
    assert result(uring) == few.written == 4


def test_the_stream_moves_when_the_completion_is_taken(machine: Machine, uring: Uring, file: int) -> None:
    chain = chain_of(machine)
    uring.preadv(chain, file, 0, 4, None)
    uring.submit()
    assert select.select([uring], [], [], PATIENCE)[0]
    assert (chain.written, uring.in_flight) == (0, 1)
    assert uring.completions() == [(None, 4)]
    assert (chain.written, uring.in_flight) == (4, 0)


def test_flags(machine: Machine, uring: Uring, file: int, pipe: tuple[int, int]) -> None:
    uring.preadv(chain_of(machine), pipe[0], 0, 4, None, os.RWF_NOWAIT)
    assert result(uring) == -errno.EAGAIN
    uring.pwritev(chain_of(machine), file, 0, 4, None, os.RWF_DSYNC)
    assert result(uring) == 4
    uring.preadv(chain_of(machine), file, 0, 4, None, flags=1 << 30)
    assert result(uring) == -errno.EOPNOTSUPP


def direct(tmp_path: Path) -> int:
    """An fd of a file with the pattern that goes past the page cache."""
    path = tmp_path / "image"
    path.write_bytes(PATTERN)
    return os.open(path, os.O_RDWR | os.O_DIRECT)


@pytest.mark.parametrize("skew", [0, 1, 511])
def test_direct(machine: Machine, uring: Uring, tmp_path: Path, skew: int) -> None:
    """Whatever is not aligned as the file system wants it is refused, or not, as preadv does."""
    fd = direct(tmp_path)
    with mmap.mmap(-1, 2 * PAGE) as copy, memoryview(copy) as view, view[skew : skew + PAGE] as part:
        try:
            expected = os.preadv(fd, [part], PAGE)
        except OSError as error:
            expected = -(error.errno or 0)
    assert expected in (PAGE, -errno.EINVAL)
    chain = machine.chain([(DATA + skew, PAGE // 2, True), (DATA + PAGE // 2 + skew, PAGE // 2, True)])
    uring.preadv(chain, fd, PAGE, PAGE, None)
    assert result(uring) == expected
    assert chain.written == max(expected, 0)
    assert machine.memory.read(DATA + skew, chain.written) == PATTERN[PAGE : PAGE + chain.written]
    os.close(fd)


PIECES = st.lists(
    st.tuples(
        st.one_of(
            st.integers(DATA, DATA + 64), st.integers(SEAM - 70, SEAM + 5), st.integers(DATA, END - 80)
        ),
        st.integers(0, 70),
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=60)
@given(
    requests=st.lists(
        st.tuples(st.booleans(), PIECES, st.integers(0, 300), st.floats(0, 1)), min_size=1, max_size=6
    )
)
def test_like_the_system_calls(requests: list[tuple[bool, list[tuple[int, int]], int, float]]) -> None:
    """Reads and writes one after the other move what os.preadv and os.pwritev move."""
    machine, uring, file, model = Machine(), Uring(2), memfd(0), memfd(0)
    machine.memory.write(DATA, PATTERN[DATA - GUEST :])
    for fd in (file, model):
        os.write(fd, PATTERN[:256])
    for reads, pieces, offset, part in requests:
        chain = machine.chain([(addr, size, reads) for addr, size in pieces])
        n = int((chain.writable if reads else chain.readable) * part)
        before = bytearray(machine.memory.read(GUEST, SIZE))
        expected = like(model, before, reads=reads, pieces=pieces, offset=offset, n=n)
        (uring.preadv if reads else uring.pwritev)(chain, file, offset, n, chain)
        uring.submit()
        assert take(uring, 1) == [(chain, expected)]
        assert chain.written == (expected if reads else 0)
        assert machine.memory.read(DATA, END - DATA) == before[DATA - GUEST :]
        assert os.pread(file, 4096, 0) == os.pread(model, 4096, 0)
        machine.ring.push(chain)
        machine.driver.used()
    uring.close()
    os.close(file)
    os.close(model)


def like(
    fd: int, memory: bytearray, *, reads: bool, pieces: list[tuple[int, int]], offset: int, n: int
) -> int:
    """What the system call does with the first `n` bytes of the pieces of `memory`."""
    views = []
    with memoryview(memory) as whole:
        for addr, size in pieces:
            views.append(whole[addr - GUEST : addr - GUEST + min(size, n)])
            n -= len(views[-1])
        moved = os.preadv(fd, views, offset) if reads else os.pwritev(fd, views, offset)
        for view in views:
            view.release()
    return moved


# --- Files ------------------------------------------------------------------------------------------------


def test_fsync(uring: Uring, file: int, pipe: tuple[int, int]) -> None:
    for data_only in (True, False):
        uring.fsync(file, None, data_only=data_only)
        assert result(uring) == 0
        uring.fsync(pipe[1], None, data_only=data_only)
        assert result(uring) == -errno.EINVAL


def test_fallocate(uring: Uring, file: int) -> None:
    uring.fallocate(file, PUNCH_HOLE | KEEP_SIZE, 10, 20, None)
    assert result(uring) == 0
    assert os.pread(file, 40, 0) == PATTERN[:10] + bytes(20) + PATTERN[30:40]
    uring.fallocate(file, 0, SIZE, 5, None)
    assert result(uring) == 0
    assert os.fstat(file).st_size == SIZE + 5
    uring.fallocate(file, 1 << 20, 0, 1, None)
    assert result(uring) == -errno.EOPNOTSUPP
    uring.fallocate(file, 0, 0, 0, None)
    assert result(uring) == -errno.EINVAL


@pytest.mark.parametrize(("offset", "n"), [*((n, 1) for n in HUGE), *((0, n) for n in HUGE), (2**62, 2**62)])
def test_a_range_of_no_file(uring: Uring, file: int, offset: int, n: int) -> None:
    with pytest.raises(BadRequest, match=f"no file has {n} bytes at offset {offset}"):
        uring.fallocate(file, 0, offset, n, None)
    assert uring.in_flight == 0


# --- Requests ---------------------------------------------------------------------------------------------


def test_errors_are_results(machine: Machine, uring: Uring) -> None:
    chain = chain_of(machine)
    uring.preadv(chain, -1, 0, 4, "read")
    uring.fsync(-1, "sync")
    uring.fallocate(-1, 0, 0, 1, "allocate")
    assert uring.submit() == 3
    assert dict(take(uring, 3)) == dict.fromkeys(("read", "sync", "allocate"), -errno.EBADF)
    assert (chain.writable, chain.written) == (4, 0)


def test_tokens_come_back_as_they_are(machine: Machine, uring: Uring, file: int) -> None:
    tokens: list[object] = [object(), None, machine, [], uring]
    for token in tokens:
        uring.preadv(chain_of(machine), file, 0, 4, token)
    uring.submit()
    found = [token for token, _ in take(uring, 5)]
    assert sorted(map(id, found)) == sorted(map(id, tokens))
    del found, tokens, token


def test_nothing_begins_before_submit(machine: Machine, uring: Uring, file: int) -> None:
    uring.pwritev(chain_of(machine), file, 0, 4, None)
    assert uring.in_flight == 1
    assert os.pread(file, 4, 0) == PATTERN[:4]
    assert (uring.submit(), uring.submit()) == (1, 0)
    assert take(uring, 1) == [(None, 4)]
    assert os.pread(file, 4, 0) == bytes(4)


def test_completions_submits_what_is_queued(machine: Machine, uring: Uring, file: int) -> None:
    uring.preadv(chain_of(machine), file, 0, 4, "token")
    assert (uring.completions() or take(uring, 1)) == [("token", 4)]
    assert uring.completions() == []


def test_any_order(machine: Machine, uring: Uring, file: int, pipe: tuple[int, int]) -> None:
    slow, quick = chain_of(machine), chain_of(machine, addr=DATA + 8)
    uring.preadv(slow, pipe[0], 0, 4, "slow")
    for _ in range(20):
        uring.preadv(quick, file, 0, 0, "quick")
        uring.submit()
        assert take(uring, 1) == [("quick", 0)]
    assert (uring.in_flight, uring.completions()) == (1, [])
    os.write(pipe[1], b"abc")
    assert take(uring, 1) == [("slow", 3)]
    assert (slow.written, machine.memory.read(DATA, 4)) == (3, b"abc\0")


def test_fileno_is_readable_while_there_are_completions(uring: Uring, file: int) -> None:
    assert select.select([uring], [], [], 0) == ([], [], [])
    uring.fsync(file, None)
    assert select.select([uring], [], [], 0) == ([], [], [])
    uring.submit()
    take(uring, 1)
    assert select.select([uring], [], [], 0) == ([], [], [])


def test_on_an_event_loop(run_async: Run, machine: Machine, uring: Uring, pipe: tuple[int, int]) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        loop.add_reader(uring.fileno(), lambda: done.set_result(uring.completions()))
        uring.preadv(chain_of(machine), pipe[0], 0, 4, "token")
        uring.submit()
        await asyncio.sleep(0)
        os.write(pipe[1], b"abcd")
        assert await done == [("token", 4)]
        loop.remove_reader(uring.fileno())

    run_async(main)


def test_hundreds_in_flight(file: int) -> None:
    machine, uring, n = Machine(1024), Uring(500), 500
    for round in range(3):
        chains = [machine.chain([(DATA + 64 * i, 64, True)]) for i in range(n)]
        for i, chain in enumerate(chains):
            uring.preadv(chain, file, 64 * i + round, 64, i)
        assert (uring.submit(), uring.in_flight) == (n, n)
        assert sorted(take(uring, n), key=repr) == sorted([(i, 64) for i in range(n)], key=repr)
        assert machine.memory.read(DATA, 64 * n) == PATTERN[round : round + 64 * n]
        for chain in chains:
            assert chain.written == 64
            machine.ring.push(chain)
            machine.driver.used()


def test_full(machine: Machine, file: int) -> None:
    uring = Uring(3)  # the kernel makes room for four
    chains = [chain_of(machine) for _ in range(4)]
    for chain in chains[:3]:
        uring.preadv(chain, file, 0, 4, None)
    queues: list[Callable[[], None]] = [
        lambda: uring.preadv(chains[3], file, 0, 4, None),
        lambda: uring.fsync(file, None),
        lambda: uring.fallocate(file, 0, 0, 1, None),
    ]
    for queue in queues:
        with pytest.raises(BlockingIOError, match="3 requests are in flight"):
            queue()
    uring.submit()
    with pytest.raises(BlockingIOError):  # done, but not taken
        uring.fsync(file, None)
    assert len(take(uring, 3)) == 3
    uring.preadv(chains[3], file, 0, 4, None)
    assert result(uring) == chains[3].written == 4


def test_a_chain_in_flight_is_not_taken_again(
    machine: Machine, uring: Uring, file: int, pipe: tuple[int, int]
) -> None:
    chain, other = chain_of(machine), Uring(1)
    uring.preadv(chain, pipe[0], 0, 4, None)
    for again in (uring, other):
        with pytest.raises(ValueError, match="in flight already"):
            again.pwritev(chain, file, 0, 4, None)
    assert (uring.in_flight, other.in_flight) == (1, 0)
    os.write(pipe[1], b"ab")
    assert result(uring) == 2
    other.pwritev(chain, file, 0, 4, None)
    assert result(other) == 4


@pytest.mark.parametrize("n", [5, *HUGE])
def test_counts_that_do_not_fit(machine: Machine, uring: Uring, file: int, n: int) -> None:
    chain = chain_of(machine)
    for queue in (uring.preadv, uring.pwritev):
        with pytest.raises(BadRequest, match=f"chain 0: {n} bytes .* 4 left"):
            queue(chain, file, 0, n, None)
    assert (chain.readable, chain.writable, uring.in_flight) == (4, 4, 0)


@pytest.mark.parametrize("offset", [*HUGE, 2**63 - 4])
def test_offset_of_no_file(machine: Machine, uring: Uring, file: int, offset: int) -> None:
    chain = chain_of(machine)
    for queue in (uring.preadv, uring.pwritev):
        with pytest.raises(BadRequest, match=f"no file has 4 bytes at offset {offset}"):
            queue(chain, file, offset, 4, None)
    uring.preadv(chain, file, 0, 4, None)
    assert result(uring) == 4


def test_numbers_must_be_integers(machine: Machine, uring: Uring, file: int) -> None:
    with pytest.raises(TypeError):
        uring.preadv(chain_of(machine), file, "0", 4, None)  # type: ignore[arg-type]  # what is tested
    with pytest.raises(TypeError):
        uring.fallocate(file, 0, 0, "4", None)  # type: ignore[arg-type]  # what is tested
    with pytest.raises(TypeError):
        uring.preadv(None, file, 0, 4, None)  # type: ignore[arg-type]  # what is tested


# --- Lifetimes --------------------------------------------------------------------------------------------


def test_what_is_in_flight_keeps_its_memory(uring: Uring, pipe: tuple[int, int]) -> None:
    machine = Machine()
    uring.preadv(chain_of(machine), pipe[0], 0, 4, None)
    uring.submit()
    del machine
    gc.collect()
    assert mapped() == SIZE
    os.write(pipe[1], b"abcd")
    assert take(uring, 1) == [(None, 4)]
    assert mapped() == 0


def test_the_map_is_replaced_meanwhile(uring: Uring, pipe: tuple[int, int]) -> None:
    machine = Machine()
    uring.preadv(chain_of(machine, addr=SEAM), pipe[0], 0, 4, None)
    uring.submit()
    memory = GuestMemory(machine.memory.regions[:1])  # without the region that the chain is in
    desc, avail, used = machine.driver.desc_addr, machine.driver.avail_addr, machine.driver.used_addr
    machine.ring.remap(memory, memory.guest(desc, 128), memory.guest(avail, 22), memory.guest(used, 70))
    machine.memory = memory
    del machine.driver
    assert mapped() == SIZE
    os.write(pipe[1], b"abcd")
    assert take(uring, 1) == [(None, 4)]
    assert mapped() == SIZE // 2


@pytest.mark.parametrize("end", [Uring.close, None], ids=["close", "drop"])
def test_the_end_while_requests_are_in_flight(
    end: Callable[[Uring], None] | None, file: int, pipe: tuple[int, int]
) -> None:
    machine, uring = Machine(16), Uring(16)
    chains = [chain_of(machine, addr=DATA + 16 * i) for i in range(5)]
    for chain in chains[:4]:
        uring.preadv(chain, pipe[0], 0, 4, uring.fileno())
    uring.submit()
    uring.fsync(file, None)
    uring.pwritev(chains[4], file, 0, 4, None)  # never submitted, and never done
    if end:
        end(uring)
        assert uring.in_flight == 0
    del uring
    os.write(pipe[1], b"abcd")
    assert os.read(pipe[0], 100) == b"abcd"  # nobody else wants it
    assert os.pread(file, 4, 0) == PATTERN[:4]
    assert [chain.written for chain in chains] == [0] * 5
    again = Uring(1)
    again.preadv(chains[0], file, 0, 4, None)
    assert result(again) == 4


def test_the_end_waits_for_the_disk(tmp_path: Path) -> None:
    """What a disk has been told to do cannot be cancelled."""
    fd = direct(tmp_path)
    for _ in range(20):
        machine, uring = Machine(32), Uring(16)
        for i in range(16):
            chain = machine.chain([(DATA + PAGE * i, PAGE, True)])
            uring.preadv(chain, fd, PAGE * i, PAGE, None)
        uring.submit()
        del machine, chain, uring
        assert mapped() == 0
    os.close(fd)


def test_another_thread_may_end_it(machine: Machine, pipe: tuple[int, int]) -> None:
    urings = [Uring(4)]
    urings[0].preadv(chain_of(machine), pipe[0], 0, 4, None)
    urings[0].submit()
    thread = threading.Thread(target=urings.clear)
    thread.start()
    thread.join()
    os.write(pipe[1], b"abcd")
    assert os.read(pipe[0], 100) == b"abcd"


def test_the_thread_that_submitted_is_gone(machine: Machine, uring: Uring, pipe: tuple[int, int]) -> None:
    uring.preadv(chain_of(machine), pipe[0], 0, 4, "token")
    thread = threading.Thread(target=uring.submit)
    thread.start()
    thread.join()
    os.write(pipe[1], b"abcd")
    assert take(uring, 1) in ([("token", 4)], [("token", -errno.ECANCELED)])


def test_a_token_that_refers_to_the_uring(machine: Machine, pipe: tuple[int, int]) -> None:
    """The garbage collector may end it, and does not tear the chain away from under the kernel."""
    uring = Uring(4)
    token: list[object] = [uring]
    token.append(token)
    uring.preadv(chain_of(machine), pipe[0], 0, 4, token)
    uring.preadv(chain_of(machine), pipe[0], 0, 4, (uring,))
    uring.submit()
    name = f"fd {uring.fileno()} -> anon_inode:[io_uring]"
    assert name in held()
    del uring, token
    gc.collect()
    assert name not in held()


def test_closed(machine: Machine, file: int) -> None:
    uring = Uring(4)
    uring.close()
    uring.close()
    chain = chain_of(machine)
    for call in (
        uring.fileno,
        uring.submit,
        uring.completions,
        lambda: uring.preadv(chain, file, 0, 4, None),
        lambda: uring.pwritev(chain, file, 0, 4, None),
        lambda: uring.fsync(file, None),
        lambda: uring.fallocate(file, 0, 0, 1, None),
    ):
        with pytest.raises(ValueError, match="the Uring is closed"):
            call()
    assert uring.in_flight == 0


# --- Lost memory ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [Uring.preadv, Uring.pwritev], ids=["preadv", "pwritev"])
def test_lost_memory(uring: Uring, file: int, call: Callable[..., None]) -> None:
    """The request fails, others are as they were, and whoever uses the chain then learns why."""
    lost, other = Shrinking(), Machine()
    chain, whole = lost.chain(), chain_of(other)
    lost.shrink(8 * PAGE)
    call(uring, chain, file, 0, chain.readable, "lost")
    call(uring, whole, file, 0, 4, "whole")
    uring.submit()
    found = dict(take(uring, 2))
    assert found.pop("whole") == 4
    if found != {"lost": -errno.EFAULT}:
        assert found == {"lost": 16}  # as far as there is memory
        assert not lost.memory.lost
        call(uring, chain, file, 0, PAGE, None)
        assert result(uring) == -errno.EFAULT
    assert lost.memory.lost
    assert not other.memory.lost
    with pytest.raises(MemoryLost):
        chain.write(b"")
    with pytest.raises(MemoryLost):
        lost.ring.push(chain)
    lost.close()


# --- What the host may refuse -----------------------------------------------------------------------------

SETUP, ENTER = 425, 426
ALLOW, REFUSE = 0x7FFF0000, 0x00050000  # SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO


class Filter(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_uint16),
        ("jump_true", ctypes.c_uint8),
        ("jump_false", ctypes.c_uint8),
        ("k", ctypes.c_uint32),
    )


class Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("filters", ctypes.POINTER(Filter)))


def refuse(number: int, error: int) -> None:
    """From now on, this thread's system calls of this number fail."""
    steps = (0x20, 0, 0, 0), (0x15, 0, 1, number), (6, 0, 0, REFUSE | error), (6, 0, 0, ALLOW)
    filters = (Filter * 4)(*(Filter(*step) for step in steps))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0, "PR_SET_NO_NEW_PRIVS"
    assert libc.prctl(22, 2, ctypes.byref(Program(4, filters))) == 0, "PR_SET_SECCOMP"


def refused(number: int, error: int, call: Callable[[], object]) -> object:
    """What the call returns, or raises, on a thread that may not make such system calls."""
    outcome: list[object] = []

    def run() -> None:
        refuse(number, error)
        try:
            outcome.append(call())
        except OSError as refusal:
            outcome.append(refusal)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return outcome[0]


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.EPERM, errno.EMFILE])
def test_no_io_uring(error: int) -> None:
    refusal = refused(SETUP, error, lambda: Uring(4))
    assert isinstance(refusal, OSError)
    assert refusal.errno == error


NOP, FSYNC, SOCKET = 0, 3, 45  # operations
IORING_OFF_SQES = 0x1000_0000


def put_by_hand(uring: Uring, operation: int, fd: int) -> int:
    """What the kernel makes of a request that somebody else puts into the first place of the queues of 8."""
    request = bytes((operation, 0, 0, 0)) + fd.to_bytes(4, "little")
    offsets = (ctypes.c_uint32 * 30)()
    libc = ctypes.CDLL(None, use_errno=True)
    os.close(libc.syscall(SETUP, 8, ctypes.byref(offsets)))  # they are the same for all of a size
    tail, results = offsets[11], offsets[25]
    with (
        mmap.mmap(uring.fileno(), 4096) as queues,
        mmap.mmap(uring.fileno(), 8 * 64, offset=IORING_OFF_SQES) as requests,
    ):
        requests[:64] = request.ljust(64, b"\0")
        queues[tail : tail + 4] = (1).to_bytes(4, "little")
        assert libc.syscall(ENTER, uring.fileno(), 1, 1, 1, None, 0) == 1
        return int.from_bytes(queues[results + 8 : results + 12], "little", signed=True)


def test_one_of_our_operations(uring: Uring, file: int) -> None:
    assert put_by_hand(uring, FSYNC, file) == 0


@pytest.mark.parametrize("operation", [NOP, SOCKET])
def test_other_operations_are_refused(uring: Uring, file: int, operation: int) -> None:
    assert put_by_hand(uring, operation, file) == -errno.EACCES


@pytest.mark.parametrize("entries", [0, 32769, 2**32 - 1])
def test_entries_that_the_kernel_refuses(entries: int) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        Uring(entries)


@pytest.mark.parametrize("entries", HUGE)
def test_entries_out_of_range(entries: int) -> None:
    with pytest.raises(OverflowError):
        Uring(entries)
    os.fstat(0)  # what was never made closes no fd


@pytest.mark.parametrize("error", [errno.EAGAIN, errno.EBUSY])
def test_the_kernel_has_no_resources(
    machine: Machine, uring: Uring, file: int, pipe: tuple[int, int], error: int
) -> None:
    uring.preadv(chain_of(machine), file, 0, 4, "alone")
    refusal = refused(ENTER, error, uring.submit)
    assert isinstance(refusal, OSError)
    assert (refusal.errno, uring.in_flight) == (error, 1)
    assert result(uring) == 4
    uring.preadv(chain_of(machine), pipe[0], 0, 4, "slow")
    uring.submit()
    uring.preadv(chain_of(machine), file, 0, 4, "beside it")
    assert refused(ENTER, error, uring.submit) == 0
    assert (uring.completions() or take(uring, 1)) == [("beside it", 4)]


def test_signals_are_served() -> None:
    """A system call that is interrupted again and again does not keep a signal's handler waiting."""
    script = """
import errno, os, signal, sys
from tests.ring.test_uring import ENTER, refuse
from vhostd.ring.uring import Uring

def handler(number, frame):
    os._exit(7)

signal.signal(signal.SIGALRM, handler)
uring = Uring(1)
uring.fsync(0, None)
refuse(ENTER, errno.EINTR)
signal.setitimer(signal.ITIMER_REAL, 0.01)
uring.submit()
"""
    assert run_script(script).returncode == 7


def test_memory_stays_mapped_if_there_is_no_way_to_wait() -> None:
    script = """
import errno, os
from tests.ring.test_uring import ENTER, chain_of, mapped, refuse
from tests.ring.machine import SIZE, Machine
from vhostd.ring.uring import Uring

reader, writer = os.pipe()
for drop in (False, True):
    machine, uring = Machine(), Uring(1)
    uring.preadv(chain_of(machine), reader, 0, 4, None)
    uring.submit()
    if not drop:
        kept = uring, machine
refuse(ENTER, errno.EPERM)
del uring, machine
try:
    kept[0].close()
except PermissionError:
    del kept
    assert mapped() == 2 * SIZE
    print("kept")
"""
    done = run_script(script)
    assert done.stdout == "kept\n", done.stderr


def run_script(script: str) -> subprocess.CompletedProcess[str]:
    """Runs it with the same modules as this process has."""
    paths = [str(Path(ring.__file__).parents[2]), str(Path(__file__).parents[2])]
    return subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )


# --- Threads of the kernel, and an end that waits only so long ----------------------------------------------


def test_in_threads_the_kernel_tries_nothing_at_once(machine: Machine, file: int) -> None:
    """Bytes, results and the end are as ever."""
    uring = Uring(8, in_threads=True)
    machine.memory.write(DATA, b"abcd")
    uring.pwritev(chain_of(machine), file, 100, 4, "write")
    assert uring.submit() == 1
    assert take(uring, 1) == [("write", 4)]
    chain = chain_of(machine)
    uring.preadv(chain, file, 98, 4, "read")
    uring.fsync(file, "sync")
    uring.submit()
    assert sorted(take(uring, 2), key=str) == [("read", 4), ("sync", 0)]
    assert machine.memory.read(DATA, 4) == PATTERN[98:100] + b"ab"
    assert chain.written == 4
    uring.close()


def test_in_threads_what_hangs_keeps_no_other_waiting(
    machine: Machine, file: int, pipe: tuple[int, int]
) -> None:
    uring = Uring(8, in_threads=True)
    uring.preadv(chain_of(machine), pipe[0], 0, 4, "pipe")
    uring.preadv(chain_of(machine, addr=DATA + 16), file, 0, 4, "file")
    uring.submit()
    assert take(uring, 1) == [("file", 4)]
    os.write(pipe[1], b"abcd")
    assert take(uring, 1) == [("pipe", 4)]
    uring.preadv(chain_of(machine), pipe[0], 0, 4, "again")
    uring.submit()
    uring.close()  # which cancels what hangs
    os.write(pipe[1], b"abcd")
    assert os.read(pipe[0], 4) == b"abcd"


# Without patience a look may come before the kernel's thread has even begun: then the memory is left to it.
@pytest.mark.parametrize(
    ("in_threads", "patience"),
    [(False, 0), (False, PATIENCE), (False, None), (True, PATIENCE), (True, None)],
)
def test_what_can_be_cancelled_takes_no_patience(
    machine: Machine, pipe: tuple[int, int], patience: float | None, *, in_threads: bool
) -> None:
    uring = Uring(8, in_threads=in_threads)
    uring.preadv(chain_of(machine), pipe[0], 0, 4, None)
    uring.submit()
    uring.close(patience)
    uring.close(patience)


def test_an_end_that_takes_too_long_leaves_the_memory_to_the_kernel() -> None:
    """Each look ends as if there had been nothing to see, and nothing is cancelled."""
    script = """
import errno, os
from tests.ring.test_uring import ENTER, chain_of, mapped, refuse
from tests.ring.machine import SIZE, Machine
from vhostd.ring.uring import Uring

reader, writer = os.pipe()
machine, uring = Machine(), Uring(1)
uring.preadv(chain_of(machine), reader, 0, 4, None)
uring.submit()
refuse(ENTER, errno.ETIME)
try:
    uring.close(0.02)
except TimeoutError:
    uring.close(0.02)  # which does nothing more
    del uring, machine
    assert mapped() == SIZE
    print("kept")
"""
    done = run_script(script)
    assert done.stdout == "kept\n", done.stderr
