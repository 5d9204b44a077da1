"""Every request of virtio 1.3, 5.2.6, on every engine, cache mode and kind of image; and what goes wrong."""

import errno
import logging
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.devices.vhost_user_blk.guest import (
    BUFFERS,
    CACHES,
    CANARY,
    END,
    SEAM,
    SECURE_ERASE,
    SERIAL,
    SIZE,
    Answer,
    Guest,
    Recording,
    disk,
    memory_to_cut,
)
from tests.storage.images import (
    ENGINES,
    engine_of,
    noise,
    replaced,
)
from vhostd.errors import BadRequest, MemoryLost
from vhostd.frontend.drivers.block import (
    DISCARD,
    FLUSH,
    GET_ID,
    HEADER,
    IN,
    IOERR,
    OK,
    OUT,
    SECTOR,
    UNMAP,
    UNSUPP,
    WRITE_ZEROES,
    segments,
)

PAGE = 4096
SECTORS = SIZE // SECTOR
U32, U64 = (1 << 32) - 1, (1 << 64) - 1
MAX_SECTORS = 0x7FFF_FFFF // SECTOR

KINDS = [(cache, True) for cache in CACHES] + [("writeback", False), ("writethrough", False)]
EVERY = [(engine, cache, is_file) for engine in ENGINES for cache, is_file in KINDS]


def name_of(kind: tuple[str, str, bool]) -> str:
    engine, cache, is_file = kind
    return f"{engine}-{cache}-{'file' if is_file else 'ram'}"


@pytest.fixture(params=EVERY, ids=name_of)
def guest(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Guest]:
    """A guest with each kind of disk."""
    engine, cache, is_file = request.param
    with disk(tmp_path if is_file else None, engine, cache, queue_size=2048) as guest:
        yield guest


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Guest]:
    """A guest with one kind of disk, for what the others cannot change."""
    with disk(tmp_path, queue_size=2048) as guest:
        yield guest


def ends(status: int, room: int = 0) -> Answer:
    """The answer that is nothing but a status: what was to be read is as it was."""
    return Answer(status, CANARY * room, room + 1)


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]


# --- Data (5.2.6.1) -------------------------------------------------------------------------------------


def test_reads_what_is_there(guest: Guest) -> None:
    assert guest.do(IN, 0, room=SIZE) == noise(SIZE)
    assert guest.do(IN, SECTORS - 1, room=SECTOR) == noise(SIZE)[-SECTOR:]
    assert guest.do(IN, 3, room=3 * SECTOR) == noise(SIZE)[3 * SECTOR : 6 * SECTOR]


def test_writes_what_it_is_given_and_nothing_else(guest: Guest) -> None:
    wanted, new = bytearray(noise(SIZE)), noise(9 * SECTOR, 1)
    for sector in (0, 21, SECTORS - 9):
        guest.do(OUT, sector, new)
        wanted[sector * SECTOR : sector * SECTOR + len(new)] = new
    assert guest.contents() == wanted
    assert guest.do(IN, 0, room=SIZE) == wanted


def test_no_data_at_all(guest: Guest) -> None:
    assert guest.ask(IN, 5) == ends(OK)
    assert guest.ask(OUT, 5) == ends(OK)
    assert guest.ask(IN, SECTORS) == ends(OK)
    assert guest.contents() == noise(SIZE)


def test_guest_memory_that_is_not_aligned(guest: Guest) -> None:
    """Without the page cache the host refuses such memory: the data take another way."""
    assert guest.do(IN, 8, room=3 * PAGE, shift=1) == noise(SIZE)[PAGE : 4 * PAGE]
    guest.do(OUT, 8, noise(3 * PAGE, 1), shift=3)
    assert guest.contents() == noise(SIZE)[:PAGE] + noise(3 * PAGE, 1) + noise(SIZE)[4 * PAGE :]


def test_more_pieces_than_a_system_call_takes(guest: Guest) -> None:
    size = 1500 * 16
    cuts = range(16, size - size % SECTOR, 16)
    size -= size % SECTOR
    answer = guest.exchange(HEADER.pack(IN, 0, 1), size + 1, (), [*cuts, size])
    assert answer == (OK, noise(SIZE)[SECTOR : SECTOR + size], size + 1)
    data = HEADER.pack(OUT, 0, 1) + noise(size, 1)
    assert guest.exchange(data, 1, [HEADER.size, *(HEADER.size + cut for cut in cuts)]) == ends(OK)
    assert guest.contents() == noise(SIZE)[:SECTOR] + noise(size, 1) + noise(SIZE)[SECTOR + size :]


def test_data_across_a_seam_of_guest_memory(guest: Guest) -> None:
    header, status, start = SEAM - 0x8000, SEAM - 0x4000, SEAM - PAGE
    guest.memory.write(header, HEADER.pack(IN, 0, 8))
    buffer = guest.offer_memory([(header, HEADER.size)], [(start, 2 * PAGE), (status, 1)])
    assert guest.wait(buffer) == [2 * PAGE + 1]
    assert guest.memory.read(start, 2 * PAGE) == noise(SIZE)[PAGE : 3 * PAGE]
    assert guest.memory.read(status, 1) == b"\0"
    guest.memory.write(header, HEADER.pack(OUT, 0, 0))
    buffer = guest.offer_memory([(header, HEADER.size), (start, 2 * PAGE)], [(status, 1)])
    assert guest.wait(buffer) == [1]
    assert guest.contents() == noise(SIZE)[PAGE : 3 * PAGE] + noise(SIZE)[2 * PAGE :]


def test_many_requests_at_a_time(guest: Guest) -> None:
    places = [*range(0, SECTORS, 8)]
    written = [guest.begin(OUT, place, noise(PAGE, place)) for place in places]
    assert guest.finish(*written) == [ends(OK)] * len(places)
    read = [guest.begin(IN, place, room=PAGE) for place in places]
    wanted = [noise(PAGE, place) for place in places]
    assert guest.finish(*read) == [(OK, data, PAGE + 1) for data in wanted]
    assert guest.contents() == b"".join(wanted)


@pytest.mark.parametrize("is_file", [True, False], ids=["file", "ram"])
def test_more_requests_than_the_engine_takes_at_a_time(engine: str, tmp_path: Path, is_file: bool) -> None:  # noqa: FBT001
    """Twenty queues that are kicked at the same time, each of which may have so many requests."""
    with disk(tmp_path if is_file else None, engine, "writethrough", queues=8, queue_size=1024) as guest:
        header, data, status = SEAM - 0x4000, SEAM - 0x2000, SEAM
        guest.memory.write(header, HEADER.pack(OUT, 0, 0))
        guest.memory.write(data, noise(SECTOR, 1))
        readable = [(header, HEADER.size), (data, SECTOR)]
        buffers = [guest.offer_memory(readable, [(status, 1)], i % 8, start=False) for i in range(1100)]
        guest.start_all()
        assert guest.wait(*buffers) == [1] * len(buffers)
        assert guest.contents() == noise(SECTOR, 1) + noise(SIZE)[SECTOR:]


def test_a_request_of_more_steps_than_the_stack_is_deep(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one of 200 MiB that is not aligned, for which a guest needs just the memory of a piece of it."""
    monkeypatch.setattr("vhostd.storage.read_write.STEP", SECTOR)
    with disk(tmp_path, engine, "direct") as guest:
        assert guest.do(IN, 0, room=SIZE, shift=1) == noise(SIZE)
        guest.do(OUT, 0, noise(SIZE, 1), shift=1)
        assert guest.contents() == noise(SIZE, 1)


# --- The cache ------------------------------------------------------------------------------------------


def test_a_flush(guest: Guest) -> None:
    assert guest.ask(FLUSH) == ends(OK)
    assert guest.ask(FLUSH, sector=U64) == ends(OK)
    assert guest.ask(FLUSH, data=bytes(100), room=7) == ends(OK, 7)


def test_a_flush_asks_the_kernel(engine: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Shown by an fd of which fdatasync(2) says EINVAL, as of all that have nothing to sync."""
    with disk(tmp_path, engine) as guest:
        with replaced(guest.image.fd, "/dev/full"):
            assert guest.ask(FLUSH) == ends(IOERR)
        assert guest.ask(FLUSH) == ends(OK)
    assert errors(caplog) == [f"flush at 0 of {tmp_path}/disk.img: Invalid argument"]


def test_nothing_to_flush_on_a_read_only_disk(engine: str, tmp_path: Path) -> None:
    with disk(tmp_path, engine, read_only=True) as guest, replaced(guest.image.fd, "/dev/full"):
        assert guest.ask(FLUSH) == ends(OK)


def test_written_through_means_durable(engine: str, tmp_path: Path) -> None:
    """RWF_DSYNC, which only the kernel can obey, goes with every write, and in this mode only."""
    recording = Recording(engine_of(engine))
    with disk(tmp_path, recording, "writethrough") as guest:
        guest.do(OUT, 0, noise(PAGE, 1))
        guest.do(OUT, 8, noise(PAGE, 2), shift=1)
        assert recording.flags == [os.RWF_DSYNC] * 2
        guest.requests.writeback = True
        guest.do(OUT, 8, noise(PAGE, 3))
        assert os.RWF_DSYNC not in recording.flags[2:]
        guest.requests.writeback = False
        guest.do(OUT, 16, noise(PAGE, 4))
        assert recording.flags[-1] == os.RWF_DSYNC
        assert guest.contents()[: 3 * PAGE] == noise(PAGE, 1) + noise(PAGE, 3) + noise(PAGE, 4)


def test_also_what_is_written_from_memory_that_is_not_aligned(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags: list[int] = []
    pwritev = os.pwritev

    def write(fd: int, buffers: list[memoryview], offset: int, how: int = 0) -> int:
        flags.append(how)
        return pwritev(fd, buffers, offset, how)

    with disk(tmp_path, engine, "direct") as guest:
        monkeypatch.setattr(os, "pwritev", write)
        guest.do(OUT, 0, noise(PAGE, 1), shift=1)
        guest.requests.writeback = False
        guest.do(OUT, 8, noise(PAGE, 2), shift=1)
        assert flags == [0, os.RWF_DSYNC]
        assert guest.contents()[: 2 * PAGE] == noise(PAGE, 1) + noise(PAGE, 2)


@pytest.mark.parametrize("flags", [0, UNMAP])
def test_zeroes_written_through_are_durable(
    engine: str, flags: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    with disk(tmp_path, engine, "writethrough") as guest:
        monkeypatch.setattr(os, "fdatasync", synced.append)
        guest.do(WRITE_ZEROES, data=segments([(0, 8)], flags))
        assert synced == [guest.image.fd]
        guest.requests.writeback = True
        guest.do(WRITE_ZEROES, data=segments([(0, 8)], flags))
        assert synced == [guest.image.fd]


# --- The serial number ----------------------------------------------------------------------------------


def test_the_serial_number_in_any_room(guest: Guest) -> None:
    for room in (0, 1, 19, 20, 21, 600):
        wanted = SERIAL.encode()[:room] + CANARY * (room - len(SERIAL))
        assert guest.ask(GET_ID, room=room) == (OK, wanted, room + 1)


@pytest.mark.parametrize(
    ("serial", "wanted"),
    [
        ("", b""),
        ("disk", b"disk"),
        ("x" * 21, b"x" * 20),
        ("Größe\udcff", b"Gr\xc3\xb6\xc3\x9fe\xff"),
    ],
)
def test_serial_numbers(serial: str, wanted: bytes) -> None:
    with disk(None, serial=serial) as guest:
        assert guest.do(GET_ID, room=20) == wanted.ljust(20, b"\0")


# --- Discard, write zeroes, secure erase ----------------------------------------------------------------


def test_a_discard_gives_space_back(guest: Guest) -> None:
    before = guest.blocks()
    assert guest.ask(DISCARD, data=segments([(16, 64), (256, 128)])) == ends(OK)
    wanted = bytearray(noise(SIZE))
    for sector, count in ((16, 64), (256, 128)):
        wanted[sector * SECTOR : (sector + count) * SECTOR] = bytes(count * SECTOR)
    assert guest.contents() == wanted
    assert before - guest.blocks() >= (56 + 128) * SECTOR  # less a block for what the host keeps of holes
    assert guest.do(IN, 0, room=SIZE) == wanted


@pytest.mark.parametrize("flags", [0, UNMAP], ids=["keep", "unmap"])
def test_zeroes(guest: Guest, flags: int) -> None:
    before = guest.blocks()
    places = [(1, 3), (16, 64), (100, 0), (18, 2), (SECTORS - 1, 1)]
    assert guest.ask(WRITE_ZEROES, data=segments(places, flags)) == ends(OK)
    wanted = bytearray(noise(SIZE))
    for sector, count in places:
        wanted[sector * SECTOR : (sector + count) * SECTOR] = bytes(count * SECTOR)
    assert guest.contents() == wanted
    assert guest.do(IN, 0, room=SIZE) == wanted
    freed = before - guest.blocks()
    assert freed >= 60 * SECTOR if flags else freed <= 0 or guest.image.is_memory


def test_the_whole_disk_at_once(guest: Guest) -> None:
    guest.do(DISCARD, data=segments([(0, SECTORS)]))
    assert guest.contents() == bytes(SIZE)
    guest.do(OUT, 0, noise(SIZE, 1))
    guest.do(WRITE_ZEROES, data=segments([(0, SECTORS)]))
    assert guest.contents() == bytes(SIZE)


def test_as_many_segments_as_there_may_be(guest: Guest) -> None:
    guest.do(DISCARD, data=segments([(2 * i, 1) for i in range(16)]))
    wanted = bytearray(noise(SIZE))
    for i in range(16):
        wanted[2 * i * SECTOR : (2 * i + 1) * SECTOR] = bytes(SECTOR)
    assert guest.contents() == wanted
    guest.do(WRITE_ZEROES, data=segments([(2 * i, 1) for i in range(16)]))
    assert guest.contents() == wanted


MOST_DISCARDED, MOST_ZEROED = (128 << 20) // SECTOR, (16 << 20) // SECTOR


def test_no_more_than_a_request_may_have(plain: Guest) -> None:
    """What one may name is bounded, since few bytes name much: 2 GiB are discarded, or 256 MiB zeroed."""
    os.ftruncate(plain.image.fd, 4 << 30)
    plain.image.resize(plain.image.measure())
    for kind, most in ((DISCARD, MOST_DISCARDED), (WRITE_ZEROES, MOST_ZEROED)):
        ranges = [(i * most, most) for i in range(16)]
        plain.do(kind, data=segments(ranges))
        for wrong in ([(0, most + 1)], [*ranges[:-1], (0, most + 1)], [*ranges, (0, 1)]):
            assert plain.ask(kind, data=segments(wrong)) == ends(IOERR)


def test_few_zeroes_where_each_has_to_be_written(plain: Guest) -> None:
    plain.image.abilities = plain.image.abilities._replace(zeroes_fast=False)
    os.ftruncate(plain.image.fd, 64 << 20)
    plain.image.resize(plain.image.measure())
    plain.do(WRITE_ZEROES, data=segments([(0, MOST_ZEROED)]))
    assert plain.ask(WRITE_ZEROES, data=segments([(0, MOST_ZEROED + 1)])) == ends(IOERR)
    assert plain.ask(WRITE_ZEROES, data=segments([(0, 8), (8, 8)])) == ends(IOERR)


def test_a_discard_that_is_not_offered(plain: Guest) -> None:
    plain.image.abilities = plain.image.abilities.keeping_space()
    assert plain.ask(DISCARD, data=segments([(0, 8)])) == ends(UNSUPP)
    plain.do(WRITE_ZEROES, data=segments([(8, 8)], UNMAP))  # a driver may ask, whatever it was told
    assert plain.contents() == noise(SIZE)[:PAGE] + bytes(PAGE) + noise(SIZE)[2 * PAGE :]


def test_segments_of_nothing(guest: Guest) -> None:
    for kind in (DISCARD, WRITE_ZEROES):
        assert guest.ask(kind, data=segments([(0, 0), (SECTORS, 0)])) == ends(OK)
    assert guest.contents() == noise(SIZE)


def test_no_image_here_can_be_erased_securely(guest: Guest) -> None:
    """SECURE_ERASE is not offered, so it is a type like any other that is unknown."""
    for data in (segments([(0, 8)]), segments([(0, 8)], UNMAP), b""):
        assert guest.ask(SECURE_ERASE, data=data) == ends(UNSUPP)
    assert guest.contents() == noise(SIZE)


@pytest.mark.parametrize("kind", [DISCARD, WRITE_ZEROES])
@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(1),
        bytes(15),
        bytes(17),
        bytes(16 * 16 + 1),
        segments([(0, 1)] * 17),
        segments([(0, 1)] * 257),
        segments([(SECTORS, 1)]),
        segments([(SECTORS - 1, 2)]),
        segments([(0, 1), (SECTORS + 1, 0)]),
        segments([(U64, 1)]),
        segments([(U64, U32)]),
        segments([(1 << 55, 1)]),
        segments([(0, MAX_SECTORS + 1)]),
        segments([(0, U32)]),
    ],
    ids=lambda data: f"{len(data)}-{data[:12].hex()}",
)
def test_segments_that_cannot_be(plain: Guest, kind: int, data: bytes) -> None:
    assert plain.ask(kind, data=data) == ends(IOERR)
    assert plain.contents() == noise(SIZE)


@pytest.mark.parametrize(
    ("kind", "flags"),
    [(DISCARD, UNMAP), (DISCARD, 2), (DISCARD, U32), *((WRITE_ZEROES, 1 << i) for i in range(1, 32))],
)
def test_flags_that_are_not_known(plain: Guest, kind: int, flags: int) -> None:
    assert plain.ask(kind, data=segments([(0, 1)], flags)) == ends(UNSUPP)
    assert plain.ask(kind, data=segments([(0, 1)]) + segments([(0, 1)], flags)) == ends(UNSUPP)
    assert plain.contents() == noise(SIZE)


@pytest.mark.parametrize("kind", [DISCARD, WRITE_ZEROES])
def test_an_unknown_flag_counts_more_than_a_range_that_cannot_be(plain: Guest, kind: int) -> None:
    """5.2.6.2: UNSUPP "if any unknown flag is set"."""
    wrong = segments([(SECTORS, 1)]) + segments([(0, 1)], 2)
    assert plain.ask(kind, data=wrong) == ends(UNSUPP)
    assert plain.contents() == noise(SIZE)


def test_a_host_that_knows_no_zero_range(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A discard is not supported, then, and zeros are written, with and without UNMAP."""

    def fallocate(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "no")

    with disk(tmp_path, engine) as guest:
        monkeypatch.setattr(guest.image, "fallocate", fallocate)
        assert guest.ask(DISCARD, data=segments([(0, 8)])) == ends(UNSUPP)
        guest.do(WRITE_ZEROES, data=segments([(8, 9)]))
        guest.do(WRITE_ZEROES, data=segments([(32, 9)], UNMAP))
        wanted = bytearray(noise(SIZE))
        for sector in (8, 32):
            wanted[sector * SECTOR : (sector + 9) * SECTOR] = bytes(9 * SECTOR)
        assert guest.contents() == wanted


# --- Types ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", [2, 3, 5, 6, 7, 9, 10, 12, 15, 16, 17, 18, 19, 20, 22, 24, 26, 0x80000000, 0x80000001, U32]
)
@pytest.mark.parametrize("room", [0, SECTOR])
def test_types_that_are_not_known(plain: Guest, kind: int, room: int) -> None:
    """SCSI commands (2 and 3), barriers and zones among them."""
    assert plain.ask(kind, 0, bytes(SECTOR), room) == ends(UNSUPP, room)
    assert plain.contents() == noise(SIZE)


# --- Framing (2.7.4) ------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", ["writeback", "direct"])
def test_cut_anywhere(engine: str, cache: str, tmp_path: Path) -> None:
    with disk(tmp_path, engine, cache, queue_size=1024) as guest:
        read, write = HEADER.pack(IN, 0, 1), HEADER.pack(OUT, 0, 1)
        for cut in range(1, HEADER.size + SECTOR):
            data = noise(SECTOR, cut)
            written_at = guest.exchange(write + data, 1, [cut])
            answer = guest.exchange(read, SECTOR + 1, [min(cut, HEADER.size - 1)], [min(cut, SECTOR)])
            assert (written_at, answer) == (ends(OK), (OK, data, SECTOR + 1))
        assert guest.contents() == noise(SIZE)[:SECTOR] + data + noise(SIZE)[2 * SECTOR :]


def test_every_byte_on_its_own(guest: Guest) -> None:
    data = HEADER.pack(OUT, 0, 1) + noise(SECTOR, 1)
    assert guest.exchange(data, 1, range(1, len(data))) == ends(OK)
    answer = guest.exchange(HEADER.pack(IN, 0, 1), SECTOR + 1, range(1, HEADER.size), range(1, SECTOR + 1))
    assert answer == (OK, noise(SECTOR, 1), SECTOR + 1)
    data = HEADER.pack(WRITE_ZEROES, 0, 0) + segments([(1, 1), (3, 1)])
    assert guest.exchange(data, 1, range(1, len(data))) == ends(OK)
    answer = guest.exchange(HEADER.pack(GET_ID, 0, 0), 21, range(1, HEADER.size), range(1, 21))
    assert answer == (OK, SERIAL.encode(), 21)
    wanted = bytearray(noise(SIZE))
    wanted[SECTOR : 2 * SECTOR] = wanted[3 * SECTOR : 4 * SECTOR] = bytes(SECTOR)
    assert guest.contents() == wanted


@pytest.mark.parametrize("size", range(HEADER.size))
@pytest.mark.parametrize("room", [0, 1, 2, SECTOR + 1])
def test_headers_that_are_too_short(plain: Guest, size: int, room: int) -> None:
    if size or room:
        answer = plain.exchange(HEADER.pack(OUT, 0, 0)[:size], room)
        assert answer == (ends(IOERR, room - 1) if room else Answer(None, b"", 0))
    assert plain.contents() == noise(SIZE)


@pytest.mark.parametrize("kind", [IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES, SECURE_ERASE, 99])
def test_no_room_for_a_status(plain: Guest, kind: int) -> None:
    """Nothing is done whose end could not be told."""
    data = segments([(0, 1)]) if kind in (DISCARD, WRITE_ZEROES) else bytes(SECTOR) if kind == OUT else b""
    assert plain.exchange(HEADER.pack(kind, 0, 0) + data, 0) == (None, b"", 0)
    assert plain.contents() == noise(SIZE)


@pytest.mark.parametrize("size", [1, 15, 16, 20, 511, 513, 1000, SIZE - 1])
def test_sizes_that_are_no_sectors(plain: Guest, size: int) -> None:
    assert plain.ask(IN, 0, room=size) == ends(IOERR, size)
    assert plain.ask(OUT, 0, noise(size, 1)) == ends(IOERR)
    assert plain.contents() == noise(SIZE)


def test_data_where_none_belongs(guest: Guest) -> None:
    """Data behind the header of a read are not looked at, nor room before the status of a write filled."""
    for size in (1, 16, SECTOR):
        assert guest.ask(IN, 2, bytes(size), SECTOR) == (OK, noise(SIZE)[2 * SECTOR : 3 * SECTOR], SECTOR + 1)
        assert guest.ask(OUT, 1, noise(SECTOR, 1), size) == ends(OK, size)
    assert guest.contents() == noise(SIZE)[:SECTOR] + noise(SECTOR, 1) + noise(SIZE)[2 * SECTOR :]


# --- A hostile guest ------------------------------------------------------------------------------------

BEYOND = [
    (SECTORS, SECTOR),
    (SECTORS - 1, 2 * SECTOR),
    (SECTORS + 1, 0),
    (SECTORS + 1, SECTOR),
    (0, SIZE + SECTOR),
    (1 << 32, SECTOR),
    (1 << 54, SECTOR),
    ((1 << 55) - 1, SECTOR),
    (1 << 55, SECTOR),  # from here on the offset in bytes does not fit 64 bits
    ((1 << 55) + 1, SECTOR),
    (1 << 63, SECTOR),
    (U64 - 1, 2 * SECTOR),
    (U64, SECTOR),
    (U64, 0),
]


def test_places_beyond_the_end(guest: Guest) -> None:
    for sector, size in BEYOND:
        assert guest.ask(IN, sector, room=size) == ends(IOERR, size)
        assert guest.ask(OUT, sector, bytes(size)) == ends(IOERR)
    assert guest.contents() == noise(SIZE)


@pytest.mark.parametrize("cache", CACHES)
def test_a_read_only_disk_stays_as_it_is(engine: str, cache: str, tmp_path: Path) -> None:
    with disk(tmp_path, engine, cache, read_only=True) as guest:
        assert guest.do(IN, 0, room=SIZE) == noise(SIZE)
        assert guest.ask(OUT, 0, bytes(SECTOR)) == ends(IOERR)
        assert guest.ask(OUT, 0) == ends(IOERR)
        assert guest.ask(DISCARD, data=segments([(0, 8)])) == ends(IOERR)
        assert guest.ask(WRITE_ZEROES, data=segments([(0, 8)])) == ends(IOERR)
        assert guest.ask(SECURE_ERASE, data=segments([(0, 8)])).status != OK
        guest.requests.writeback = not guest.requests.writeback
        assert guest.ask(OUT, 0, bytes(SECTOR)) == ends(IOERR)
        assert guest.contents() == noise(SIZE)


@pytest.mark.parametrize("kind", [IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES, 99])
@pytest.mark.parametrize("is_read", [True, False], ids=["read", "written"])
def test_the_longest_chain_that_there_is(plain: Guest, kind: int, is_read: bool) -> None:  # noqa: FBT001
    """2^32 - 1 bytes, for which a guest needs no more memory than for one piece of it."""
    header, status, start = SEAM - 0x1000, SEAM - 0x2000, SEAM
    plain.memory.write(header, HEADER.pack(kind, 0, 0))
    plain.memory.write(status, CANARY)
    rest = U32 - HEADER.size - 1
    sizes = [END - SEAM] * (rest // (END - SEAM)) + [rest % (END - SEAM)]
    pieces = [(start, size) for size in sizes]
    buffer = plain.offer_memory(
        [(header, HEADER.size), *(pieces if is_read else ())],
        [*(() if is_read else pieces), (status, 1)],
    )
    assert plain.wait(buffer) == [1 if is_read else U32 - HEADER.size]
    assert plain.memory.read(status, 1) != CANARY
    assert plain.contents() == noise(SIZE)


def test_a_bad_request_leaves_the_others_alone(guest: Guest) -> None:
    good = [guest.begin(OUT, 8 * i, noise(PAGE, i)) for i in range(4)]
    bad = [guest.begin(IN, SECTORS, room=SECTOR), guest.begin(99), guest.begin(DISCARD, data=b"?")]
    more = [guest.begin(IN, 128 + 8 * i, room=PAGE) for i in range(4)]
    answers = guest.finish(*good, *bad, *more)
    assert [each.status for each in answers] == [OK] * 4 + [IOERR, UNSUPP, IOERR] + [OK] * 4
    assert b"".join(each.data for each in answers[7:]) == noise(SIZE)[128 * SECTOR :][: 4 * PAGE]


# --- Failures of the host -------------------------------------------------------------------------------


@pytest.fixture(params=[(engine, cache) for engine in ENGINES for cache in CACHES], ids="-".join)
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Guest]:
    """A guest with each kind of file."""
    with disk(tmp_path, *request.param) as guest:
        yield guest


def test_a_file_that_becomes_shorter(file: Guest, caplog: pytest.LogCaptureFixture) -> None:
    """What is gone is an error, in whole or in part, and the guest is not given what its memory held."""
    os.truncate(file.image.path, SIZE // 2)
    middle = SECTORS // 2
    assert file.do(IN, middle - 8, room=PAGE) == noise(SIZE)[SIZE // 2 - PAGE : SIZE // 2]
    assert file.ask(IN, middle, room=PAGE) == ends(IOERR, PAGE)
    answer = file.ask(IN, middle - 8, room=2 * PAGE)
    assert (answer.status, answer.used) == (IOERR, 2 * PAGE + 1)
    assert answer.data[PAGE:] in (CANARY * PAGE, bytes(PAGE))  # without the page cache, the rest of a block
    assert file.ask(IN, middle - 8, room=2 * PAGE, shift=1).status == IOERR
    assert file.image.resize(file.image.measure())
    assert file.ask(IN, middle, room=SECTOR) == ends(IOERR, SECTOR)
    assert errors(caplog)[:2] == [
        f"read at {SIZE // 2} of {file.image.path}: Input/output error",
        f"read at {SIZE // 2} of {file.image.path}: Input/output error",
    ]
    assert len(errors(caplog)) == 4


def test_a_file_that_grows(file: Guest) -> None:
    os.truncate(file.image.path, 2 * SIZE)
    assert file.ask(IN, SECTORS, room=SECTOR) == ends(IOERR, SECTOR)
    assert file.image.resize(file.image.measure())
    assert file.do(IN, 2 * SECTORS - 1, room=SECTOR) == bytes(SECTOR)
    file.do(OUT, 2 * SECTORS - 1, noise(SECTOR, 1))
    assert file.contents() == noise(SIZE) + bytes(SIZE - SECTOR) + noise(SECTOR, 1)


@pytest.mark.parametrize("cache", ["writeback", "direct"])
def test_no_space_left(engine: str, cache: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with disk(tmp_path, engine, cache) as guest:
        with replaced(guest.image.fd, "/dev/full"):
            assert guest.ask(OUT, 3, bytes(SECTOR)) == ends(IOERR)
        assert errors(caplog) == [f"write at {3 * SECTOR} of {guest.image.path}: No space left on device"]
        guest.do(OUT, 3, bytes(SECTOR))


def test_a_file_that_may_not_become_larger(file: Guest, caplog: pytest.LogCaptureFixture) -> None:
    """As with a file system that is full the first part is written, and the rest is not."""
    os.truncate(file.image.path, 2 * SIZE)
    file.image.resize(file.image.measure())
    os.truncate(file.image.path, SIZE)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE + PAGE, hard))
    try:
        assert file.ask(OUT, SECTORS, noise(2 * PAGE, 1)) == ends(IOERR)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert file.contents() == noise(SIZE) + noise(2 * PAGE, 1)[:PAGE]
    assert errors(caplog) == [f"write at {SIZE + PAGE} of {file.image.path}: File too large"]


def test_an_input_error(file: Guest, caplog: pytest.LogCaptureFixture) -> None:
    with replaced(file.image.fd, "/proc/self/mem", os.O_RDONLY):
        assert file.ask(IN, 3, room=SECTOR) == ends(IOERR, SECTOR)
    assert errors(caplog) == [f"read at {3 * SECTOR} of {file.image.path}: Input/output error"]
    assert file.do(IN, 3, room=SECTOR) == noise(SIZE)[3 * SECTOR : 4 * SECTOR]


@pytest.mark.parametrize("kind", [DISCARD, WRITE_ZEROES])
@pytest.mark.parametrize(
    ("number", "status"), [(errno.EIO, IOERR), (errno.ENOSPC, IOERR), (errno.EOPNOTSUPP, UNSUPP)]
)
def test_a_failing_fallocate(
    engine: str,
    kind: int,
    number: int,
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, "no")

    with disk(tmp_path, engine) as guest:
        monkeypatch.setattr(guest.image, "fallocate", fail)
        monkeypatch.setattr(guest.image, "write_zeroes", fail)
        assert guest.ask(kind, data=segments([(0, 8)])) == ends(status)
    what = "discard" if kind == DISCARD else "write zeroes"
    assert errors(caplog) == [f"{what} at 0 of {tmp_path}/disk.img: {os.strerror(number)}"]


def test_a_host_that_never_transfers_at_once(
    tmp_path: Path, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some file systems refuse RWF_NOWAIT: then the engine does everything."""
    with disk(tmp_path, engine) as guest:
        monkeypatch.setattr(guest.requests.shortcut, "read_flags", -1)
        monkeypatch.setattr(guest.requests.shortcut, "write_flags", -1)
        assert guest.do(IN, 0, room=SIZE) == noise(SIZE)
        guest.do(OUT, 0, noise(PAGE, 1))
        guest.do(OUT, 8, noise(PAGE, 2))
        assert guest.contents() == noise(PAGE, 1) + noise(PAGE, 2) + noise(SIZE)[2 * PAGE :]


@pytest.mark.parametrize(
    "kind",
    [IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES],
    ids=["in", "out", "flush", "get-id", "discard", "write-zeroes"],
)
@pytest.mark.parametrize("cache", CACHES)
def test_guest_memory_that_vanishes(engine: str, kind: int, cache: str, tmp_path: Path) -> None:
    """Whoever looks next is told, and the ring is not left waiting for a request that nobody ends."""
    with memory_to_cut(PAGE) as (memory, cut):
        with disk(tmp_path, engine, cache, memory=memory) as guest:
            cut(0)
            header, gone = SEAM - 0x1000, SEAM
            data = {DISCARD: segments([(0, 8)]), WRITE_ZEROES: segments([(0, 8)])}.get(kind, b"")
            guest.memory.write(header, HEADER.pack(kind, 0, 0) + data)
            readable = [(header, HEADER.size + len(data))] + ([(gone, SECTOR)] if kind == OUT else [])
            guest.offer_memory(readable, [(gone, SECTOR + 1 if kind == IN else 1)])
            assert isinstance(guest.fails(), MemoryLost)
        del memory, guest


def test_an_error_of_ours_is_the_queue_s(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Work that raises what no work should: the connection is closed, instead of a guest that waits."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    with disk(tmp_path, engine) as guest:
        monkeypatch.setattr(guest.image, "fallocate", fail)
        guest.begin(DISCARD, data=segments([(0, 8)]))
        assert isinstance(guest.fails(), ZeroDivisionError)


def test_each_place_is_heard_once(plain: Guest, caplog: pytest.LogCaptureFixture) -> None:
    """All that a guest can cause without end comes from lines of the source that are limited one by one."""
    for _ in range(3):
        plain.ask(IN, SECTORS, room=SECTOR)
        plain.ask(99)
        plain.exchange(b"?", 1)
    assert len(errors(caplog)) == 9
    assert len({(each.pathname, each.lineno) for each in caplog.records}) == 1


# --- Memory that is not shared ------------------------------------------------------------------------------

ELSEWHERE = END + (1 << 30)  # where a guest has memory of which its front-end told nothing
HEADERS, STATUSES = BUFFERS, BUFFERS + 64


@pytest.mark.parametrize(
    ("kind", "readable", "writable"),
    [
        (IN, [], [(ELSEWHERE, PAGE)]),
        (IN, [], [(HEADERS + PAGE, PAGE), (ELSEWHERE, PAGE)]),
        (IN, [], [(END - 512, PAGE)]),
        (OUT, [(ELSEWHERE, PAGE)], []),
        (OUT, [(HEADERS + PAGE, PAGE), (ELSEWHERE, PAGE)], []),
        (GET_ID, [], [(ELSEWHERE, 20)]),
        (DISCARD, [(ELSEWHERE, 16)], []),
        (WRITE_ZEROES, [(ELSEWHERE, 16)], []),
    ],
)
def test_a_request_with_memory_that_is_not_shared_fails_alone(
    guest: Guest,
    caplog: pytest.LogCaptureFixture,
    kind: int,
    readable: list[tuple[int, int]],
    writable: list[tuple[int, int]],
) -> None:
    guest.do(OUT, 0, noise(PAGE))
    guest.memory.write(HEADERS, HEADER.pack(kind, 0, 0))
    guest.memory.write(STATUSES, CANARY)
    buffer = guest.offer_memory([(HEADERS, 16), *readable], [*writable, (STATUSES, 1)])
    guest.wait(buffer)
    assert guest.memory.read(STATUSES, 1) == bytes([IOERR])
    assert guest.do(IN, 0, room=PAGE) == noise(PAGE)
    assert "is share=on missing" in caplog.text


def test_a_header_that_is_not_shared_fails_the_request_alone(plain: Guest) -> None:
    buffer = plain.offer_memory([(ELSEWHERE, 16)], [(STATUSES, 1)])
    plain.wait(buffer)
    assert plain.memory.read(STATUSES, 1) == bytes([IOERR])
    plain.do(FLUSH)


@pytest.mark.parametrize("kind", [IN, FLUSH])
def test_a_status_that_is_not_shared_breaks_the_ring(plain: Guest, kind: int) -> None:
    """The driver would take what is there already for it: OK, as likely as not."""
    plain.memory.write(HEADERS, HEADER.pack(kind, 0, 0))
    plain.offer_memory([(HEADERS, 16)], [(HEADERS + PAGE, PAGE)] * (kind == IN) + [(ELSEWHERE, 1)])
    with pytest.raises(BadRequest, match="is share=on missing"):
        raise plain.fails()
