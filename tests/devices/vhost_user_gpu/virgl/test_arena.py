"""The arena: bytes keep their place until they are freed, and there is room when it says so."""

import mmap
import random
from collections.abc import Iterator
from contextlib import closing

import pytest

from vhost_user_gpu.virgl.arena import MOST, SIZE, Arena


@pytest.fixture
def arena() -> Iterator[Arena]:
    with closing(Arena()) as made:
        yield made


def seen(arena: Arena, offset: int, size: int) -> bytes:
    """What another process finds."""
    with mmap.mmap(arena.fd.fileno(), SIZE, prot=mmap.PROT_READ) as memory:
        return memory[offset : offset + size]


def test_bytes_are_where_it_says(arena: Arena) -> None:
    first, second = arena.put(1, b"one"), arena.put(2, b"two")
    assert (seen(arena, first, 3), seen(arena, second, 3)) == (b"one", b"two")


def test_nothing_is_overwritten_before_it_is_freed(arena: Arena) -> None:
    """Whenever it has room, it has room for the most that a request may take."""
    dice = random.Random(1)
    placed: dict[int, tuple[int, int]] = {}
    for serial in range(1, 500):
        while not arena.has_room:
            freed = next(iter(placed))
            arena.free(freed)
            del placed[freed]
        size = dice.choice((1, 100, MOST - 1, MOST))
        offset = arena.put(serial, bytes(size))
        assert 0 <= offset <= SIZE - size
        for start, length in placed.values():
            assert offset + size <= start or start + length <= offset
        placed[serial] = (offset, size)


def test_freeing_frees_all_before(arena: Arena) -> None:
    for serial in (1, 2, 3):
        arena.put(serial, bytes(MOST))
    assert not arena.has_room
    arena.free(1)
    assert arena.has_room
    arena.free(3)
    assert arena.put(4, bytes(MOST)) == 3 * MOST
    assert arena.put(5, bytes(MOST)) == 0
