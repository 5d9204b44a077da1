"""What a texture costs, and what of it can be shown."""

from contextlib import closing
from typing import Any

import pytest

from vhost_user_gpu.commands import ResourceCreate3d
from vhost_user_gpu.pixels import Format
from vhost_user_gpu.resource import RESOURCE_COST
from vhost_user_gpu.virgl.texture import BUFFER, Texture, cost

PLAIN = {
    **dict.fromkeys(ResourceCreate3d.FIELDS, 0),
    **{"resource_id": 1, "target": 2, "format": 1, "width": 10, "height": 20, "depth": 1, "array_size": 1},
}


def new(**changes: Any) -> ResourceCreate3d:
    return ResourceCreate3d(**PLAIN | changes)


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ({}, 10 * 20 * 4),
        ({"format": 64}, 10 * 20),
        ({"format": 5}, 10 * 20 * 2),
        ({"format": 94}, 10 * 20 * 8),
        ({"format": 31}, 10 * 20 * 16),
        ({"format": 5000}, 10 * 20 * 16),
        ({"target": BUFFER, "format": 31, "width": 1000, "height": 1}, 1000),
        ({"depth": 3}, 3 * 800),
        ({"array_size": 6}, 6 * 800),
        ({"nr_samples": 4}, 4 * 800),
        ({"last_level": 3}, 800 + 800 // 3),
        ({"width": 0xFFFF_FFFF, "height": 0xFFFF_FFFF, "depth": 0xFFFF_FFFF}, 4 * 0xFFFF_FFFF**3),
    ],
)
def test_its_cost(changes: dict[str, int], size: int) -> None:
    assert cost(new(**changes)) == RESOURCE_COST + size


@pytest.mark.parametrize("kind", list(Format))
def test_plain_pictures_are_shown(kind: Format) -> None:
    assert Texture(new(format=kind)).is_displayable


@pytest.mark.parametrize(
    "changes", [{"format": 31}, {"depth": 2}, {"array_size": 2}, {"nr_samples": 4}, {"target": BUFFER}]
)
def test_others_are_not(changes: dict[str, int]) -> None:
    assert not Texture(new(**changes)).is_displayable


def test_its_pixels_are_black_at_first() -> None:
    texture = Texture(new())
    assert not texture.has_pixels
    with pytest.raises(ValueError, match="no pixels"):
        texture.fileno()
    texture.make_pixels()
    with closing(texture.pixels):
        assert texture.copy_rows(0, 40, 20, 40) == bytes(800)
        assert texture.has_pixels
        texture.release()
    assert texture.copy_rows(0, 40, 20, 40) == bytes(800)
