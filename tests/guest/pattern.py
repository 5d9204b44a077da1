"""Test pictures that the guest paints and that the host computes again to compare."""

OTHER_BYTE = 0x5A  # in place of what is no colour, where it must not matter


def pattern(width: int, height: int, seed: int = 0, order: str = "RGB", other: int = OTHER_BYTE) -> bytes:
    """A picture in which no two pixels are alike, and none is like the same one with another seed.

    So a row or column too many, a wrong stride, swapped colours and pixels left over from before all
    show. `order` names the bytes of a pixel as they are in memory; those that are no colour are
    `other`. This holds for up to 4096 x 4096 pixels and for seeds below 256. It is made of whole rows,
    because a guest without KVM is slow.
    """
    red = bytes(x & 0xFF for x in range(width))
    rows = []
    for y in range(height):
        row = bytearray([other]) * (width * len(order))
        row[order.index("R") :: len(order)] = red
        row[order.index("G") :: len(order)] = bytes([y & 0xFF]) * width
        row[order.index("B") :: len(order)] = _blue(width, y, seed)
        rows.append(row)
    return b"".join(rows)


def _blue(width: int, y: int, seed: int) -> bytes:
    """What red and green do not tell: which 256 by 256 tile of the picture, and the seed."""
    tiles = (16 * (x >> 8) + (y >> 8) for x in range(0, width, 256))
    return b"".join(bytes([(37 * seed + 7 + tile) & 0xFF]) * 256 for tile in tiles)[:width]
