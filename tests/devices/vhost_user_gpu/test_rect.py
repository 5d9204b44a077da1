"""Rectangles, against the sets of their pixels."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhost_user_gpu.rect import NOTHING, Rect

RECTS = st.builds(Rect, *(st.integers(0, 7),) * 4)
LAST = (1 << 32) - 1


def pixels(rect: Rect) -> set[tuple[int, int]]:
    return {(x, y) for x in range(rect.x, rect.right) for y in range(rect.y, rect.bottom)}


@given(RECTS, RECTS)
def test_common(one: Rect, other: Rect) -> None:
    common = one.common(other)
    assert pixels(common) == pixels(one) & pixels(other)
    assert common or common == NOTHING


@given(RECTS, RECTS)
def test_around(one: Rect, other: Rect) -> None:
    both, around = pixels(one) | pixels(other), pixels(one.around(other))
    assert both <= around
    for axis in range(2):
        assert {pixel[axis] for pixel in around} == set(
            range(
                min((pixel[axis] for pixel in both), default=0),
                max((pixel[axis] for pixel in both), default=-1) + 1,
            )
        )


@given(RECTS, st.integers(0, 16), st.integers(0, 16))
def test_fits(rect: Rect, width: int, height: int) -> None:
    whole = Rect(0, 0, width, height)
    assert not rect or rect.fits(width, height) == (pixels(rect) <= pixels(whole))


@given(RECTS, st.integers(-3, 9))
def test_bands(rect: Rect, rows: int) -> None:
    bands = list(rect.bands(rows))
    assert all(0 < band.height <= max(rows, 1) for band in bands)
    assert [y for band in bands for y in range(band.y, band.bottom)] == list(range(rect.y, rect.bottom))
    assert {(band.x, band.width) for band in bands} <= {(rect.x, rect.width)}


@pytest.mark.parametrize("rect", [NOTHING, Rect(3, 3, 0, 9), Rect(3, 3, 9, 0)])
def test_an_empty_one_is_false(rect: Rect) -> None:
    assert not rect
    assert Rect(1, 1, 2, 2).around(rect) == rect.around(Rect(1, 1, 2, 2)) == Rect(1, 1, 2, 2)


def test_the_largest_numbers_do_not_wrap() -> None:
    assert Rect(LAST, LAST, LAST, LAST).right == 2 * LAST
    assert not Rect(LAST, 0, 1, 1).fits(LAST, LAST)
    assert not Rect(1, 0, LAST, 1).fits(LAST, LAST)
    assert Rect(LAST, 0, 1, 1).around(Rect(0, LAST, 1, 1)) == Rect(0, 0, LAST + 1, LAST + 1)


def test_moved() -> None:
    assert Rect(5, 6, 7, 8).moved(-5, 1) == Rect(0, 7, 7, 8)
