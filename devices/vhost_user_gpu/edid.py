"""The EDID of a virtual monitor: what a guest learns of its screen before it picks a mode.

The first block (EDID 1.4: VESA E-EDID A.2) has a detailed timing of the preferred mode. A detailed timing can
hold up to 4095 pixels a side and a clock of up to 655.35 MHz. A larger mode, such as 5120x2880, is in a
second block, a DisplayID 1.3 extension, as with real monitors. The detailed timing then holds the largest
mode that is a whole fraction of the preferred mode (2560x1440), and this mode is not called native.

All timings are CVT 1.2 with reduced blanking, version 2, at 60 Hz. Decoders reject a detailed timing of less
than 10 MHz. So a tiny mode (320x200, 16x16) gets more blank lines, until its clock is 10 MHz. Linux ignores a
mode with a side of less than 64 pixels all the same.
"""

from itertools import count
from typing import Annotated, NamedTuple

from vhostd import Layout, array, u8, u16, u32

MAX_SIDE = 16384  # pixels
REFRESH = 60  # Hz
CLOCK_UNIT = 10_000  # Hz
PIXEL_MM = 25.4 / 96  # 96 dots per inch: guests do not scale then

VENDOR = "VHO"  # not a registered vendor
PRODUCT = 1
YEAR = 2025
MODEL_YEAR = 0xFF  # in place of a week: the year is the model's
GAMMA = 120  # 2.2

# CVT 1.2, 5.4, reduced blanking version 2: pixels, lines, and the shortest vertical blanking
H_BLANK, H_FRONT, H_SYNC = 80, 8, 32
V_FRONT_LEAST, V_SYNC, V_BACK = 1, 8, 6
V_BLANK_US = 460
LEAST_CLOCK = 10_000_000  # Hz; see above

# E-EDID 3.10.2, detailed timing
TIMING_SIDE, TIMING_V_FRONT, TIMING_CLOCK = 0xFFF, 0x3F, 0xFFFF  # the largest values of the fields
SYNC_POSITIVE_NEGATIVE = 0x1A  # digital and separate; horizontal positive, vertical negative

# E-EDID 3.6: 8 bits per colour, interface unnamed; sRGB is the colour space; the preferred mode is native
DIGITAL = 0xA0
SRGB, NATIVE = 1 << 2, 1 << 1
CHROMATICITIES = bytes.fromhex("ee91 a354 4c99 260f 5054")  # sRGB's, of red, green, blue and white (3.7)
SIZES_CM = range(10, 256)  # sides of a display; other sizes are left out

# E-EDID 3.8 and 3.9, modes of 60 Hz that VESA has named (DMT)
ESTABLISHED = {(640, 480): 0x200000, (800, 600): 0x010000, (1024, 768): 0x000800}
RATIOS = {(16, 10): 0 << 6, (4, 3): 1 << 6, (5, 4): 2 << 6, (16, 9): 3 << 6}
STANDARD = {
    (1920, 1200): (16, 10),
    (1920, 1080): (16, 9),
    (1680, 1050): (16, 10),
    (1600, 900): (16, 9),
    (1440, 900): (16, 10),
    (1280, 1024): (5, 4),
    (1280, 800): (16, 10),
    (1280, 720): (16, 9),
}
NO_STANDARD = b"\1\1"
LINE_KHZ, CLOCK_MHZ = (30, 80), 200  # the rates that the named modes need

# E-EDID 3.10.3, display descriptors
NAME, RANGE_LIMITS, DUMMY = 0xFC, 0xFD, 0x10
NAME_SIZE = 13
LIMITS_ONLY = 1
MAX_LINE_RATE_IS_255_MORE = 1 << 3

# DisplayID 1.3: 2.3, and the data blocks of 4
EXTENSION, VERSION = 0x70, 0x13
STANDALONE_DISPLAY = 3
SECTION_SIZE = 121  # of data blocks, in an EDID
PRODUCT_ID, PARAMETERS, TIMING_TYPE_1, INTERFACE = 0x00, 0x01, 0x03, 0x0F
NO_PRODUCT_ID = bytes(12)  # the first block has it
PROPRIETARY_8_BITS = bytes((0xB1, 0, 0x02, 0, 0, 0, 0, 0, 0, 0))  # digital, 1 link; RGB only
POSITIVE = 1 << 15
PREFERRED_OF_ANY_RATIO = 0x88


class BaseBlock(Layout):
    """The first block without its checksum (E-EDID 3.1)."""

    header: Annotated[bytes, array(8)]
    vendor: Annotated[bytes, array(2)]
    product: u16
    serial: u32
    week: u8
    year: u8
    version: u8
    revision: u8
    input: u8
    width_cm: u8
    height_cm: u8
    gamma: u8
    features: u8
    chromaticities: Annotated[bytes, array(10)]
    established: Annotated[bytes, array(3)]
    standard: Annotated[bytes, array(16)]
    descriptors: Annotated[bytes, array(72)]
    extensions: u8


class Parameters(Layout):
    """DisplayID 1.3, 4.2 display parameters. Sizes are in 0.1 mm; gamma and ratio are in 0.01, less 1."""

    width: u16
    height: u16
    width_pixels: u16
    height_pixels: u16
    features: u8
    gamma: u8
    ratio: u8
    depth: u8


class DetailedTiming(Layout):
    """DisplayID 1.3, 4.4.1 detailed timing of type I. Every count is stored less one."""

    clock: Annotated[bytes, array(3)]
    flags: u8
    width: u16
    h_blank: u16
    h_front: u16
    h_sync: u16
    height: u16
    v_blank: u16
    v_front: u16
    v_sync: u16


class Timing(NamedTuple):
    """A mode and its vertical blanking. The horizontal blanking is the same for all modes."""

    width: int
    height: int
    v_blank: int

    @property
    def v_front(self) -> int:
        return self.v_blank - V_SYNC - V_BACK

    @property
    def clock(self) -> int:
        """In units of 10 kHz."""
        return round((self.width + H_BLANK) * self.line_rate / CLOCK_UNIT)

    @property
    def line_rate(self) -> int:
        """In Hz."""
        return (self.height + self.v_blank) * REFRESH

    @property
    def is_expressible(self) -> bool:
        """Whether the first block's detailed timing can hold it."""
        return max(self.width, self.height) <= TIMING_SIDE and self.clock <= TIMING_CLOCK


def edid(width: int, height: int, *, name: str = "vhostd", serial: int = 0) -> bytes:
    """The EDID, of one or two blocks, of a monitor that prefers `width` x `height` pixels at 60 Hz.

    Its physical size is for 96 dots per inch. The size is left out if a side is not 10 to 255 cm, as for
    16x16. Every monitor also has 640x480, and the other usual modes that are not larger than its own.

    Raises ValueError unless the sides are 1 to 16384 pixels, the serial number has 32 bits, and the name has
    1 to 13 printable ASCII characters and does not end with a blank.
    """
    _check(width, height, name, serial)
    preferred = _cvt(width, height)
    first = _first(preferred)
    blocks = [_base(preferred, first, name, serial)]
    if first != preferred:
        blocks.append(_display_id(preferred))
    return b"".join(map(_with_checksum, blocks))


def _check(width: int, height: int, name: str, serial: int) -> None:
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
        raise ValueError(f"a monitor of {width}x{height} pixels")
    if not (0 < len(name) <= NAME_SIZE and name.isascii() and name.isprintable() and name == name.rstrip()):
        raise ValueError(f"a monitor named {name!r}")
    if not 0 <= serial < 1 << 32:
        raise ValueError(f"a monitor with serial number {serial}")


def _cvt(width: int, height: int) -> Timing:
    """The mode's CVT timing; with more blank lines than in CVT if the clock would be too slow."""
    blank_us = V_BLANK_US * REFRESH  # per second; the rest of the second has height * REFRESH lines
    v_blank = max(height * blank_us // (1_000_000 - blank_us) + 1, V_FRONT_LEAST + V_SYNC + V_BACK)
    least_lines = _ceil(LEAST_CLOCK, (width + H_BLANK) * REFRESH)
    return Timing(width, height, max(v_blank, least_lines - height))


def _ceil(dividend: int, divisor: int) -> int:
    return -(-dividend // divisor)


def _first(preferred: Timing) -> Timing:
    """The preferred timing; if a detailed timing cannot hold it, its largest whole fraction."""
    width, height, _ = preferred
    fractions = (_cvt(max(width // n, 1), max(height // n, 1)) for n in count(1))
    return next(timing for timing in fractions if timing.is_expressible)


def _size_mm(timing: Timing) -> tuple[int, int]:
    width, height = round(timing.width * PIXEL_MM), round(timing.height * PIXEL_MM)
    is_told = width // 10 in SIZES_CM and height // 10 in SIZES_CM
    return (width, height) if is_told else (0, 0)


def _base(preferred: Timing, first: Timing, name: str, serial: int) -> bytes:
    size = width_mm, height_mm = _size_mm(preferred)
    descriptors = (
        _detailed_timing(first, size),
        _range_limits(preferred, first),
        _descriptor(NAME, _text(name)),
        _descriptor(DUMMY),
    )
    return BaseBlock(
        header=b"\0\xff\xff\xff\xff\xff\xff\0",
        vendor=_packed_letters(VENDOR),
        product=PRODUCT,
        serial=serial,
        week=MODEL_YEAR,
        year=YEAR - 1990,
        version=1,
        revision=4,
        input=DIGITAL,
        width_cm=width_mm // 10,
        height_cm=height_mm // 10,
        gamma=GAMMA,
        features=SRGB | (NATIVE if first == preferred else 0),
        chromaticities=CHROMATICITIES,
        established=_established(preferred),
        standard=_standard(preferred),
        descriptors=b"".join(descriptors),
        extensions=int(first != preferred),
    ).pack()


def _packed_letters(letters: str) -> bytes:
    """Three letters of 5 bits, A being 1 (E-EDID 3.4.1)."""
    first, second, third = (ord(letter) - ord("A") + 1 for letter in letters)
    return (first << 10 | second << 5 | third).to_bytes(2, "big")


def _established(largest: Timing) -> bytes:
    bits = sum(bit for size, bit in ESTABLISHED.items() if size == (640, 480) or _fits(size, largest))
    return bits.to_bytes(3, "big")


def _standard(largest: Timing) -> bytes:
    codes = [
        bytes((size[0] // 8 - 31, RATIOS[ratio]))  # 60 Hz is 0 in this byte
        for size, ratio in STANDARD.items()
        if _fits(size, largest)
    ]
    return b"".join(codes) + NO_STANDARD * (8 - len(codes))


def _fits(size: tuple[int, int], largest: Timing) -> bool:
    return size[0] <= largest.width and size[1] <= largest.height


def _detailed_timing(timing: Timing, size_mm: tuple[int, int]) -> bytes:
    """Lines that do not fit the field of the vertical front porch count as back porch."""
    v_front = min(timing.v_front, TIMING_V_FRONT)
    return b"".join(
        (
            timing.clock.to_bytes(2, "little"),
            _two_of_12_bits(timing.width, H_BLANK),
            _two_of_12_bits(timing.height, timing.v_blank),
            bytes((H_FRONT, H_SYNC, (v_front & 0xF) << 4 | V_SYNC, v_front >> 4 << 2)),
            _two_of_12_bits(*size_mm),
            bytes((0, 0, SYNC_POSITIVE_NEGATIVE)),
        )
    )


def _two_of_12_bits(first: int, second: int) -> bytes:
    return bytes((first & 0xFF, second & 0xFF, first >> 8 << 4 | second >> 8))


def _range_limits(*timings: Timing) -> bytes:
    """The rates of all modes. A dummy if one is above 510 kHz or 2550 MHz, the limits of EDID 1.4."""
    line_least = max(min(LINE_KHZ[0], *(timing.line_rate // 1000 for timing in timings)), 1)
    line_most = max(LINE_KHZ[1], *(_ceil(timing.line_rate, 1000) for timing in timings))
    clock = max(CLOCK_MHZ // 10, *(_ceil(timing.clock, 1000) for timing in timings))
    if line_most > 2 * 255 or clock > 255:
        return _descriptor(DUMMY)
    flags, line_most = (MAX_LINE_RATE_IS_255_MORE, line_most - 255) if line_most > 255 else (0, line_most)
    limits = (REFRESH - 1, REFRESH + 1, line_least, line_most, clock, LIMITS_ONLY)
    return _descriptor(RANGE_LIMITS, bytes(limits) + _text("", 7), flags)


def _descriptor(tag: int, data: bytes = b"", flags: int = 0) -> bytes:
    return bytes((0, 0, 0, tag, flags)) + data.ljust(13, b"\0")


def _text(text: str, size: int = NAME_SIZE) -> bytes:
    """The text in ASCII; if it is shorter than the field, a newline and blanks follow."""
    return (text.encode("ascii") + b"\n").ljust(size, b" ")[:size]


def _display_id(timing: Timing) -> bytes:
    """An extension block without its checksum: one section, which has a checksum of its own."""
    blocks = (
        _data_block(PRODUCT_ID, NO_PRODUCT_ID),
        _data_block(PARAMETERS, _parameters(timing).pack()),
        _data_block(TIMING_TYPE_1, _type_1(timing).pack()),
        _data_block(INTERFACE, PROPRIETARY_8_BITS),
    )
    header = bytes((VERSION, SECTION_SIZE, STANDALONE_DISPLAY, 0))
    return bytes((EXTENSION,)) + _with_checksum(header + b"".join(blocks).ljust(SECTION_SIZE, b"\0"))


def _data_block(tag: int, payload: bytes) -> bytes:
    return bytes((tag, 0, len(payload))) + payload


def _parameters(timing: Timing) -> Parameters:
    width_mm, height_mm = _size_mm(timing)
    ratio = max(timing.width, timing.height) / min(timing.width, timing.height)
    return Parameters(
        width=width_mm * 10,
        height=height_mm * 10,
        width_pixels=timing.width,
        height_pixels=timing.height,
        features=0,
        gamma=GAMMA,
        ratio=min(round(ratio * 100) - 100, 0xFF),
        depth=0x77,  # 8 bits of each colour, natively and overall
    )


def _type_1(timing: Timing) -> DetailedTiming:
    return DetailedTiming(
        clock=(timing.clock - 1).to_bytes(3, "little"),
        flags=PREFERRED_OF_ANY_RATIO,
        width=timing.width - 1,
        h_blank=H_BLANK - 1,
        h_front=(H_FRONT - 1) | POSITIVE,
        h_sync=H_SYNC - 1,
        height=timing.height - 1,
        v_blank=timing.v_blank - 1,
        v_front=timing.v_front - 1,
        v_sync=V_SYNC - 1,
    )


def _with_checksum(data: bytes) -> bytes:
    """Adds a byte, so that the sum of all bytes is a multiple of 256."""
    return data + bytes((-sum(data) & 0xFF,))
