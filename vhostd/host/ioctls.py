"""Numbers of ioctls, as a program is granted them (Linux, include/uapi/asm-generic/ioctl.h)."""

from typing import NamedTuple, Self

WHOLE = 0xFFFF_FFFF
SIZE_SHIFT, SIZE_BITS = 16, 0x3FFF  # the argument's size; below are the type, a letter, and the number in it
WRITE, READ = 1 << 30, 2 << 30  # where the argument goes to: to the kernel, or from it


class Ioctl(NamedTuple):
    """The ioctl of this number; or, with a mask, all that have the same bits where the mask has ones."""

    number: int
    mask: int = WHOLE

    @classmethod
    def writing(cls, kind: str, number: int, size: int) -> Self:
        """One whose argument of `size` bytes the kernel reads: C's _IOW."""
        return cls(WRITE | size << SIZE_SHIFT | ord(kind) << 8 | number)

    @classmethod
    def reading(cls, kind: str, number: int, size: int | None = None, *, count: int = 1) -> Self:
        """One whose argument of `size` bytes, or of any size, the kernel fills: C's _IOR.

        With a `count`, a power of two of which `number` is a multiple, that many numbers from there on.
        """
        mask = WHOLE - (count - 1)
        if size is None:
            mask -= SIZE_BITS << SIZE_SHIFT
        return cls(READ | (size or 0) << SIZE_SHIFT | ord(kind) << 8 | number, mask)

    def sized(self, size: int) -> int:
        """The number with this size of the argument, for one of any size."""
        return self.number | size << SIZE_SHIFT
