"""A disk by itself, without any device before it: what each request does to the image, and how it ends."""

import errno
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ring.machine import DATA, Machine
from tests.storage.images import noise, open_image, replaced
from vhostd import Chain
from vhostd.storage import Disk, Result, SyncEngine

SECTOR = 512
SIZE = 64 << 10


class Ends(list[Result]):
    """How requests have ended."""

    def __call__(self, result: Result) -> None:
        self.append(result)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(open_image(tmp_path, SIZE), SyncEngine())
    yield disk
    disk.close()


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = Machine()
    yield machine
    machine.close()


@pytest.fixture
def ends() -> Ends:
    return Ends()


def readable(machine: Machine, data: bytes) -> Chain:
    machine.memory.write(DATA, data)
    return machine.chain([(DATA, len(data), False)])


def writable(machine: Machine, size: int) -> Chain:
    return machine.chain([(DATA, size, True)])


def content(disk: Disk) -> bytes:
    return os.pread(disk.image.fd, SIZE, 0)


def test_a_read(disk: Disk, machine: Machine, ends: Ends) -> None:
    disk.read(writable(machine, 2 * SECTOR), SECTOR, 2 * SECTOR, ends)
    assert ends == [0]
    assert machine.memory.read(DATA, 2 * SECTOR) == noise(SIZE)[SECTOR : 3 * SECTOR]


@pytest.mark.parametrize("durable", [True, False])
def test_a_write(disk: Disk, machine: Machine, ends: Ends, durable: bool) -> None:  # noqa: FBT001
    disk.write(readable(machine, b"x" * SECTOR), SECTOR, SECTOR, ends, durable=durable)
    assert ends == [0]
    assert content(disk)[SECTOR : 2 * SECTOR] == b"x" * SECTOR


def test_one_that_was_begun_elsewhere(disk: Disk, machine: Machine, ends: Ends) -> None:
    disk.go_on(readable(machine, b"x"), 0, SECTOR, -errno.EIO, ends, writing=True, durable=False)
    disk.go_on(readable(machine, b"x"), 0, SECTOR, SECTOR, ends, writing=True, durable=False)
    assert ends == [-errno.EIO, 0]


def test_zeroes_and_discards(disk: Disk, machine: Machine, ends: Ends) -> None:
    chain = writable(machine, 1)
    disk.zero(chain, [(0, 4096), (8192, SECTOR)], [True, False], ends, durable=True)
    disk.discard(chain, [(16384, 4096)], ends)
    expected = bytearray(noise(SIZE))
    for start, size in ((0, 4096), (8192, SECTOR), (16384, 4096)):
        expected[start : start + size] = bytes(size)
    assert ends == [0, 0]
    assert content(disk) == expected


def test_a_flush(disk: Disk, machine: Machine, ends: Ends) -> None:
    disk.flush(writable(machine, 1), ends)
    assert ends == [0]


def test_an_erasure_of_a_file(
    disk: Disk, machine: Machine, ends: Ends, caplog: pytest.LogCaptureFixture
) -> None:
    disk.erase(writable(machine, 1), [(0, SECTOR)], ends)
    assert ends == [-errno.ENOTTY]
    assert caplog.messages == [f"secure erase at 0 of {disk.image.path}: {os.strerror(errno.ENOTTY)}"]


def test_errors_are_logged_unless_nobody_waits(
    disk: Disk, machine: Machine, ends: Ends, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR), replaced(disk.image.fd, "/dev/full"):
        disk.write(readable(machine, b"x" * SECTOR), SECTOR, SECTOR, ends, durable=False)
        given_up = readable(machine, b"x" * SECTOR)
        machine.ring.give_up()
        disk.write(given_up, SECTOR, SECTOR, ends, durable=False)
    assert ends == [-errno.ENOSPC, -errno.ECANCELED]
    assert caplog.messages == [f"write at {SECTOR} of {disk.image.path}: No space left on device"]


def test_an_exception_is_handed_on(
    disk: Disk, machine: Machine, ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = ZeroDivisionError("a fault of ours")

    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(type(disk.image), "discard", fails)
    disk.discard(writable(machine, 1), [(0, 4096)], ends)
    assert ends == [error]


def test_what_it_needs_is_what_its_parts_need(disk: Disk) -> None:
    assert disk.grants().system_calls == disk.image.grants().system_calls
