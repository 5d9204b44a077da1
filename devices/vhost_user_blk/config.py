"""The config space (virtio 1.3, 5.2.4)."""

from vhost_user_blk.image import PUNCH_HOLE, Image
from vhost_user_blk.protocol import SECTOR, WRITEBACK, ConfigSpace, Feature
from vhost_user_blk.requests import MAX_SECTORS, MAX_SEGMENTS, Requests
from vhostd import RefusedRequest

ALWAYS = (
    Feature.SIZE_MAX,
    Feature.SEG_MAX,
    Feature.GEOMETRY,
    Feature.BLK_SIZE,
    Feature.FLUSH,
    Feature.TOPOLOGY,
    Feature.CONFIG_WCE,
    Feature.MQ,
)
FLUSH = 1 << Feature.FLUSH
MAX_SEGMENT = 0x7FFF_F000  # bytes: the most that Linux transfers at once
HEADS, SECTORS, MAX_CYLINDERS = 16, 63, 16383  # what partition tools of old believe in


class Config:
    """What the driver is told of the disk, as it is now; `writeback` is for the driver to choose."""

    def __init__(
        self,
        requests: Requests,
        features: int,
        *,
        queues: int,
        queue_size: int,
        block_sizes: tuple[int, int],
    ) -> None:
        """`features` are what is offered, `block_sizes` the logical and the physical one."""
        self._requests = requests
        self._may_unmap = features >> Feature.DISCARD & 1
        self._queues = queues
        self._queue_size = queue_size
        self._block_size, self._physical_block_size = block_sizes

    def read(self) -> bytes:
        """The whole space."""
        image = self._requests.image
        blocks = self._physical_block_size // self._block_size
        alignment = self._block_size // SECTOR
        return ConfigSpace(
            capacity=image.size // SECTOR,
            size_max=MAX_SEGMENT,
            seg_max=self._queue_size - 2,  # of a chain, the header and the status
            cylinders=min(image.size // (SECTOR * HEADS * SECTORS), MAX_CYLINDERS),
            heads=HEADS,
            sectors=SECTORS,
            blk_size=self._block_size,
            physical_block_exp=blocks.bit_length() - 1,
            alignment_offset=0,
            min_io_size=blocks,
            opt_io_size=0,
            writeback=int(not self._requests.is_durable),
            unused0=0,
            num_queues=self._queues,
            max_discard_sectors=MAX_SECTORS,
            max_discard_seg=MAX_SEGMENTS,
            discard_sector_alignment=self._physical_block_size // SECTOR,
            max_write_zeroes_sectors=MAX_SECTORS,
            max_write_zeroes_seg=MAX_SEGMENTS,
            write_zeroes_may_unmap=self._may_unmap,
            unused1=b"",
            max_secure_erase_sectors=MAX_SECTORS,
            max_secure_erase_seg=MAX_SEGMENTS,
            secure_erase_sector_alignment=alignment,
            zoned=b"",
        ).pack()

    def write(self, offset: int, data: bytes) -> None:
        """Switches the write cache; raises RefusedRequest for anything else."""
        if (offset, data) not in ((WRITEBACK, b"\0"), (WRITEBACK, b"\1")):
            raise RefusedRequest(
                f"{len(data)} bytes at {offset} of the config space, which are not 0 or 1 at 32"
            )
        self._requests.writeback = data == b"\1"


def features_of(image: Image) -> int:
    """The device's feature bits: what a disk on this image can do."""
    bits = [*ALWAYS]
    if image.read_only:
        bits.append(Feature.RO)
    else:
        bits.append(Feature.WRITE_ZEROES)
        if image.can_fallocate(PUNCH_HOLE):
            bits.append(Feature.DISCARD)
        if image.can_erase_securely():
            bits.append(Feature.SECURE_ERASE)
    return sum(1 << bit for bit in bits)
