"""The config space (virtio 1.3, 5.2.4)."""

from vhost_user_blk.protocol import SECTOR, WRITEBACK, BlkFeature, VirtioBlkConfig
from vhost_user_blk.requests import Requests
from vhostd import Layout, RefusedRequest, Unpacker, u8, u64
from vhostd.storage import PAGE, Abilities, Image, discard_bounds, zero_bounds

ALWAYS = (
    BlkFeature.SIZE_MAX,
    BlkFeature.SEG_MAX,
    BlkFeature.GEOMETRY,
    BlkFeature.BLK_SIZE,
    BlkFeature.FLUSH,
    BlkFeature.TOPOLOGY,
    BlkFeature.CONFIG_WCE,
    BlkFeature.MQ,
)
FLUSH = 1 << BlkFeature.FLUSH
MAX_TRANSFER = 0x7FFF_F000  # bytes of a request: the most that Linux transfers at once
MAX_U8, MAX_U16, MAX_U32 = 0xFF, 0xFFFF, 0xFFFF_FFFF
HEADS, SECTORS, MAX_CYLINDERS = 16, 63, 16383  # what partition tools of old believe in


class BlkState(Layout):
    """A saved state, of version 1: the disk's size in bytes, and whether there is a write cache."""

    size: u64
    writeback: u8


class Config:
    """What the driver is told of the disk, as it is now; `writeback` is for the driver to choose."""

    def __init__(
        self,
        requests: Requests,
        *,
        queues: int,
        queue_size: int,
        block_sizes: tuple[int, int],
    ) -> None:
        """`block_sizes` are the logical and the physical one."""
        self._requests = requests
        self._queues = queues
        self._queue_size = queue_size
        self._block_size, self._physical_block_size = block_sizes

    def read(self) -> bytes:
        """The whole space."""
        image = self._requests.image
        has = image.abilities
        discards, zeroes = discard_bounds(has), zero_bounds(has)
        return VirtioBlkConfig(
            capacity=image.size // SECTOR,
            size_max=self._size_max(),
            seg_max=self._seg_max,
            cylinders=min(image.size // (SECTOR * HEADS * SECTORS), MAX_CYLINDERS),
            heads=HEADS,
            sectors=SECTORS,
            blk_size=self._block_size,
            physical_block_exp=(self._physical_block_size // self._block_size).bit_length() - 1,
            alignment_offset=self._in_blocks(has.alignment_offset, MAX_U8),
            min_io_size=self._min_io_size(has),
            opt_io_size=self._opt_io_size(has),
            writeback=int(not self._requests.is_durable),
            unused0=0,
            num_queues=self._queues,
            max_discard_sectors=discards.size // SECTOR,
            max_discard_seg=discards.segments,
            discard_sector_alignment=max(has.discard_granularity, self._physical_block_size) // SECTOR,
            max_write_zeroes_sectors=zeroes.size // SECTOR,
            max_write_zeroes_seg=zeroes.segments,
            write_zeroes_may_unmap=int(has.unmaps),
            unused1=b"",
            max_secure_erase_sectors=discards.size // SECTOR,
            max_secure_erase_seg=discards.segments,
            secure_erase_sector_alignment=self._block_size // SECTOR,
            zoned=b"",
        ).pack()

    def write(self, offset: int, data: bytes) -> None:
        """Switches the write cache; raises RefusedRequest for anything else.

        A front-end may write the bytes around it as they are: some do so four at a time.
        """
        space = bytearray(self.read())
        space[offset : offset + len(data)] = data
        wanted, space[WRITEBACK] = space[WRITEBACK], self._requests.writeback
        if wanted > 1 or space != self.read():
            raise RefusedRequest(f"{len(data)} bytes at {offset} of the config space, more than 0 or 1 at 32")
        self._requests.writeback = bool(wanted)

    def save(self) -> bytes:
        """What a driver knows of the disk, and what it has chosen."""
        return BlkState(self._requests.image.size, int(self._requests.writeback)).pack()

    def load(self, state: bytes) -> bool:
        """Takes a driver's choice over; returns whether it must hear that the disk has another size here.

        Raises RefusedRequest if what it counts on is not all there.
        """
        unpacker = Unpacker(state)
        saved = unpacker.unpack(BlkState)
        unpacker.end()
        size = self._requests.image.size
        if saved.size > size:
            raise RefusedRequest(f"it is of a disk of {saved.size} bytes, and this one has {size}")
        if saved.writeback > 1:
            raise RefusedRequest(f"its write cache is {saved.writeback}, not 0 or 1")
        self._requests.writeback = bool(saved.writeback)
        return saved.size != size

    @property
    def _seg_max(self) -> int:
        """All of a chain but the header and the status."""
        return self._queue_size - 2

    def _size_max(self) -> int:
        """Whole pages. Front-ends multiply it with `seg_max`, and some do that in 31 bits (libblkio)."""
        return MAX_TRANSFER // self._seg_max // PAGE * PAGE

    def _min_io_size(self, has: Abilities) -> int:
        """In blocks; a physical block where the host has no wish that can be told."""
        least = self._physical_block_size
        return self._in_blocks(max(has.min_io_size, least), MAX_U16) or least // self._block_size

    def _opt_io_size(self, has: Abilities) -> int:
        """In blocks; 0 if it would cut physical ones, as that of some USB disks, of 65535 sectors, does.

        Partitions are laid out by it.
        """
        return 0 if has.opt_io_size % self._physical_block_size else self._in_blocks(has.opt_io_size, MAX_U32)

    def _in_blocks(self, size: int, most: int) -> int:
        """So many bytes in logical blocks, 0 if that is no number of them or does not fit."""
        blocks, rest = divmod(size, self._block_size)
        return 0 if rest or blocks > most else blocks


def features_of(image: Image) -> int:
    """The device's feature bits: what a disk on this image can do."""
    bits = [*ALWAYS]
    if image.read_only:
        bits.append(BlkFeature.RO)
    else:
        bits.append(BlkFeature.WRITE_ZEROES)
        if image.abilities.discards:
            bits.append(BlkFeature.DISCARD)
        if image.can_erase_securely():
            bits.append(BlkFeature.SECURE_ERASE)
    return sum(1 << bit for bit in bits)
