"""Resources: their bytes, also when they are gone, and the memory that they cost."""

import os
import socket
from collections.abc import Iterator
from uuid import UUID

import pytest

from tests.devices.vhost_user_gpu.guest import END, GUEST, RAM, SEAM, Guest, make_memory, noise
from tests.ring.machine import memfd
from vhost_user_gpu.commands import CommandError, Response
from vhost_user_gpu.pixels import Format
from vhost_user_gpu.rect import Rect
from vhost_user_gpu.resource import MAX_RESOURCES, RANGE_COST, RESOURCE_COST, Blob, Picture, Resources
from vhostd import BadRequest, MemoryLost
from vhostd.wire.fds import Fd

Sockets = tuple[socket.socket, socket.socket]


@pytest.fixture
def guest() -> Guest:
    return Guest()


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def picture(width: int = 4, height: int = 3, number: int = 1) -> Picture:
    return Picture(number, Format.B8G8R8X8, width, height)


def content(resource: Picture | Blob, size: int) -> bytes:
    return bytes(resource.copy_rows(0, size, 1, size))


# --- Pictures -------------------------------------------------------------------------------------------


def transfer(picture: Picture, rect: Rect, offset: int) -> None:
    assert picture.backing is not None
    picture.fill_from(picture.backing, rect, offset)


def test_a_picture_is_black_at_first() -> None:
    assert content(picture(), 48) == bytes(48)


def test_rows_of_a_picture(guest: Guest) -> None:
    made, pixels = picture(), noise(48)
    guest.memory.write(RAM, pixels)
    made.backing = guest.gather((RAM, 48))
    transfer(made, Rect(0, 0, 4, 3), 0)
    assert content(made, 48) == pixels
    assert made.copy_rows(20, 8, 2, 16) == pixels[20:28] + pixels[36:44]
    assert made.copy_rows(16, 16, 2, 16) == pixels[16:48]
    assert made.copy_rows(40, 8, 1, 16) == pixels[40:]


def test_a_transfer_takes_rows_as_far_apart_as_the_pictures(guest: Guest) -> None:
    made, pixels = picture(), noise(64)
    guest.memory.write(RAM, pixels)
    made.backing = guest.gather((RAM, 30), (RAM + 30, 34))
    transfer(made, Rect(1, 1, 2, 2), 5)
    rows = [bytes(16), bytes(4) + pixels[5:13] + bytes(4), bytes(4) + pixels[21:29] + bytes(4)]
    assert content(made, 48) == b"".join(rows)


def test_a_transfer_from_nowhere(guest: Guest) -> None:
    made = picture()
    made.backing = guest.gather((RAM, 47))
    with pytest.raises(BadRequest):
        transfer(made, Rect(0, 0, 4, 3), 0)
    transfer(made, Rect(0, 0, 3, 3), 0)


def test_sending_a_picture(guest: Guest, sockets: Sockets) -> None:
    made, pixels = picture(), noise(48)
    guest.memory.write(RAM, pixels)
    made.backing = guest.gather((RAM, 48))
    transfer(made, Rect(0, 0, 4, 3), 0)
    assert made.send(sockets[0], 8, 40) == 40
    assert sockets[1].recv(100) == pixels[8:]


# --- Blobs ----------------------------------------------------------------------------------------------


def test_a_blob_is_guest_memory(guest: Guest, sockets: Sockets) -> None:
    blob, pixels = Blob(1, 64), noise(64)
    guest.memory.write(SEAM - 32, pixels)
    blob.backing = guest.gather((SEAM - 32, 64))
    assert content(blob, 64) == pixels
    assert blob.copy_rows(3, 8, 3, 20) == pixels[3:11] + pixels[23:31] + pixels[43:51]
    assert blob.send(sockets[0], 1, 63) == 63
    assert sockets[1].recv(100) == pixels[1:]
    guest.memory.write(SEAM, b"now")
    assert content(blob, 64)[32:35] == b"now"


def test_a_blob_with_too_small_a_backing_is_zeros(guest: Guest, sockets: Sockets) -> None:
    blob = Blob(1, 64)
    guest.memory.write(RAM, b"\xff" * 64)
    blob.backing = guest.gather((RAM, 63))
    assert content(blob, 64) == bytes(64)
    assert blob.copy_rows(0, 16, 4, 16) == bytes(64)
    assert blob.send(sockets[0], 0, 64) == 64
    assert sockets[1].recv(100) == bytes(64)


def test_a_blob_in_memory_that_vanished(sockets: Sockets) -> None:
    """Nothing takes its place: of a call that fails nobody knows what it has sent."""
    with Fd(memfd(SEAM - GUEST)) as low, Fd(memfd(END - SEAM)) as high:
        guest = Guest(memory=make_memory(low.fileno(), high.fileno()))
        blob = Blob(1, 64)
        blob.backing = guest.gather((SEAM, 64))
        os.ftruncate(high.fileno(), 0)
        for _ in range(2):
            with pytest.raises(MemoryLost):
                content(blob, 64)
            with pytest.raises(MemoryLost):
                blob.send(sockets[0], 0, 64)


# --- Resources that are gone ------------------------------------------------------------------------------


@pytest.mark.parametrize("made", [picture(256, 256), Blob(1, 1 << 18)], ids=["picture", "blob"])
def test_what_was_released_is_zeros(made: Picture | Blob, guest: Guest, sockets: Sockets) -> None:
    guest.memory.write(RAM, noise(1 << 18))
    made.backing = guest.gather((RAM, 1 << 18))
    if isinstance(made, Picture):
        transfer(made, Rect(0, 0, 256, 256), 0)
    assert content(made, 1 << 18) == noise(1 << 18)
    made.release()
    made.release()
    assert made.backing is None
    assert made.copy_rows(0, 256, 256, 1024) == bytes(1 << 16)
    assert made.copy_rows(1 << 17, 1 << 17, 1, 1 << 17) == bytes(1 << 17)
    sent = made.send(sockets[0], 0, 1 << 18)
    assert 0 < sent <= 1 << 18
    assert sockets[1].recv(sent, socket.MSG_WAITALL) == bytes(sent)


@pytest.mark.parametrize("kind", ["picture", "blob", "released"])
def test_a_full_socket(kind: str, guest: Guest, sockets: Sockets) -> None:
    made: Picture | Blob = Blob(1, 1 << 20) if kind == "blob" else picture(512, 512)
    made.backing = guest.gather((RAM, 1 << 20))
    if kind == "released":
        made.release()
    sockets[0].setblocking(False)
    sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    assert 0 < made.send(sockets[0], 0, 1 << 20) < 1 << 16
    with pytest.raises(BlockingIOError):
        made.send(sockets[0], 0, 1 << 20)


def test_each_resource_has_a_uuid_of_its_own() -> None:
    one, other = picture(), picture()
    assert one.uuid == one.uuid
    assert one.uuid != other.uuid
    assert UUID(bytes=one.uuid).version == 4


# --- All of them ------------------------------------------------------------------------------------------


def test_costs(guest: Guest) -> None:
    resources = Resources(1 << 20)
    made, blob = picture(), Blob(2, 1 << 40)
    resources.add(made)
    assert resources.used == made.cost == RESOURCE_COST + 48
    resources.attach(made, guest.gather((RAM, 8), (RAM + 8, 8), (RAM, 0), (RAM, 32)))
    assert resources.used == made.cost + 2 * RANGE_COST, "ranges that meet are one"
    resources.add(blob, guest.gather((SEAM - 1, 2)))
    assert resources.used == made.cost + blob.cost + 4 * RANGE_COST, "one across regions is two"
    resources.detach(made)
    resources.detach(made)
    assert resources.used == made.cost + blob.cost + 2 * RANGE_COST
    resources.remove(blob)
    assert resources.used == made.cost
    assert list(resources) == [made]
    resources.clear()
    assert resources.used == 0
    assert list(resources) == []


def test_the_limit(guest: Guest) -> None:
    resources, made = Resources(RESOURCE_COST + 48 + RANGE_COST), picture()
    with pytest.raises(CommandError, match="--max-memory"):
        resources.reserve(1, RESOURCE_COST + 48 + RANGE_COST + 1)
    resources.reserve(1, RESOURCE_COST + 48 + RANGE_COST)
    with pytest.raises(CommandError, match="--max-memory"):
        resources.reserve(1, RESOURCE_COST + 48, guest.gather((RAM, 1), (RAM + 2, 1)))
    resources.add(made)
    with pytest.raises(CommandError, match="--max-memory"):
        resources.attach(made, guest.gather((RAM, 1), (RAM + 2, 1)))
    assert made.backing is None
    resources.attach(made, guest.gather((RAM, 2)))
    assert resources.used == resources.limit


def test_there_are_not_too_many() -> None:
    resources = Resources(1 << 40)
    for number in range(1, MAX_RESOURCES + 1):
        resources.reserve(number, RESOURCE_COST)
        resources.add(Blob(number, 1))
    with pytest.raises(CommandError) as caught:
        resources.reserve(MAX_RESOURCES + 1, RESOURCE_COST)
    assert caught.value.response == Response.ERR_OUT_OF_MEMORY
    resources.remove(resources[1])
    resources.reserve(MAX_RESOURCES + 1, RESOURCE_COST)


@pytest.mark.parametrize("number", [0, 1])
def test_numbers_that_are_taken(number: int) -> None:
    resources = Resources(1 << 20)
    resources.add(picture())
    with pytest.raises(CommandError) as caught:
        resources.reserve(number, 1)
    assert caught.value.response == Response.ERR_INVALID_RESOURCE_ID
