"""Blk: the disk as a device."""

import argparse
import asyncio
import os
from collections.abc import Sequence
from typing import Self

from vhost_user_blk import MANIFEST
from vhost_user_blk.config import FLUSH, Config, features_of
from vhost_user_blk.protocol import ID_SIZE
from vhost_user_blk.requests import Requests
from vhostd import (
    Device,
    DeviceType,
    Grants,
    Handler,
    Link,
    SetupError,
    Signals,
    UsageError,
    Virtqueue,
    positive,
    size,
)
from vhostd.storage import Image, SizeWatch, Throttle, make_engine

LOCKINGS = ("auto", "on", "off")
CACHES = ("writeback", "writethrough", "direct")
ENGINES = ("io_uring", "threads", "sync")
MAX_QUEUES = 256
MIN_QUEUE_SIZE, MAX_QUEUE_SIZE = 4, 32768
SMALLEST_BLOCK, LARGEST_BLOCK = 512, 1 << 20
MAX_POLL = 10_000  # microseconds
MAX_DIGITS = 9


class Blk(Device):
    """a disk for the guest: a file, a block device or memory (virtio-blk)"""

    kind = DeviceType.of(MANIFEST.type)

    def __init__(
        self,
        requests: Requests,
        config: Config,
        features: int,
        *,
        queues: int = 1,
        throttle: Throttle | None = None,
        poll: float = 0.0,
    ) -> None:
        """Serves what the requests are for, whose image and engine it owns; polls for `poll` seconds."""

        self.features = features
        self._requests = requests
        self._config = config
        self._queues = queues
        self._throttle = throttle
        self._poll = poll
        self._initial_writeback = requests.writeback
        self._size = SizeWatch(requests.image, self.config_changed)

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        """Adds the image, one of two, and how it is to be served."""
        image = parser.add_argument_group("disk")
        add = image.add_mutually_exclusive_group(required=True).add_argument
        add("-b", "--blk-file", metavar="PATH", help="the file or block device that is the disk")
        add("--ram", metavar="SIZE", type=size, help="a disk of zeros in memory, gone with the program")
        add = image.add_argument
        add("-r", "--read-only", action="store_true", help="let nobody write")
        add("--format", choices=("raw",), help="take it as it is, even if it looks like another format")
        add("--locking", choices=LOCKINGS, default="auto", help="default: auto, on if there are any locks")
        add("--share-rw", action="store_true", help="let other programs write to it, too")
        add("--serial", default="", help="the disk's serial number, of up to 20 bytes")
        add("--logical-block-size", metavar="SIZE", type=_block_size, help="default: 512; a device's own")
        add("--physical-block-size", metavar="SIZE", type=_block_size, help="default: the host's")
        add(
            "--cache",
            type=_cache,
            choices=CACHES,
            default="writeback",
            help="durable at a flush, or at once, or past the page cache, QEMU's none; default: writeback",
        )
        add("--discard", choices=("on", "off"), default="on", help="default: on; off: give no space back")
        add(
            "--aio",
            type=_engine,
            choices=ENGINES,
            help="default: the first that the host has; with sync all else waits while the storage does",
        )
        add("--num-queues", metavar="N", type=_num_queues, default=64, help="queues at most; default: 64")
        add("--queue-size", metavar="N", type=_queue_size, default=128, help="to suggest; default: 128")
        add("--poll-us", metavar="N", type=_poll, default=0, help="microseconds to look for more; default: 0")
        add("--rate-iops", metavar="N", type=positive, default=0, help="requests per second; default: any")
        add("--rate-bytes", metavar="SIZE", type=size, default=0, help="bytes per second; default: any")

    @classmethod
    def from_options(cls, options: argparse.Namespace) -> Self:
        """Opens the image; raises SetupError if that cannot be, UsageError for options that contradict."""
        if len(os.fsencode(options.serial)) > ID_SIZE:
            raise UsageError(f"--serial={options.serial}: more than {ID_SIZE} bytes")
        image = _open_image(options)
        try:
            block_sizes = _choose_block_sizes(options, image)
            engine = make_engine(options.aio, may_wait=image.may_wait)
        except BaseException:
            image.close()
            raise
        requests = Requests(image, engine, options.serial, writeback=options.cache != "writethrough")
        features = features_of(image)
        config = Config(
            requests,
            queues=options.num_queues,
            queue_size=options.queue_size,
            block_sizes=block_sizes,
        )
        limited = options.rate_iops or options.rate_bytes
        return cls(
            requests,
            config,
            features,
            queues=options.num_queues,
            throttle=Throttle(options.rate_iops, options.rate_bytes) if limited else None,
            poll=options.poll_us / 1_000_000,
        )

    def grants(self) -> Grants:
        """What its image and its engine need."""
        return self._requests.disk.grants()

    @property
    def queues(self) -> Sequence[Handler]:
        """All requestqs (5.2.2)."""
        return [self.requestq] * self._queues

    async def requestq(self, queue: Virtqueue) -> None:
        """Begins requests as they come; they end on their own."""
        requests = self._requests
        start, shortcut = requests.start, requests.shortcut
        # A driver that knows no flush counts on what it has written (5.2.6.2).
        requests.flushable = bool(self.negotiated & FLUSH)
        queue.poll(self._poll)
        if self._throttle is None:
            queue.use_shortcut(shortcut)
            async for chain in queue:
                start(queue, chain)
                if requests.is_busy:
                    await requests.eased()
            return
        async for chain in queue:
            pause = self._throttle.spend(chain.readable + chain.writable)
            if not shortcut.take(queue, chain):
                start(queue, chain)
            shortcut.submit()
            await requests.eased()
            if pause:
                await asyncio.sleep(pause)
                queue.count_throttled(pause)

    def read_config(self) -> bytes:
        """The disk as it is now."""
        return self._config.read()

    def write_config(self, offset: int, data: bytes) -> None:
        """Switches the write cache; raises RefusedRequest for anything else."""
        self._config.write(offset, data)

    def save(self) -> bytes:
        """The disk's size, and whether there is a write cache."""
        return self._config.save()

    def load(self, state: bytes, version: int) -> None:
        """Has the write cache as the driver has chosen it; raises RefusedRequest for a larger disk."""
        if self._config.load(state):
            self.config_changed()

    async def run(self) -> None:
        """Looks whether the image has another size now and then."""
        await self._size.run()

    def signals(self) -> Signals:
        """SIGHUP has it look at the image's size at once."""
        return {"SIGHUP": self._size.look_now}

    def attach(self, link: Link) -> None:
        """Has the write cache as it is to be at first. A reset leaves it as it is.

        QEMU resets the device also where the driver does not know of it, and never says it again.
        """
        super().attach(link)
        self._requests.writeback = self._initial_writeback
        self._requests.flushable = True

    def resume(self) -> None:
        """Makes every write durable: the driver may have switched the write cache off before."""
        self._requests.writeback = False

    def close(self) -> None:
        """Ends what is under way, and closes the image."""
        self._requests.disk.close()


def _open_image(options: argparse.Namespace) -> Image:
    discard = options.discard == "on"
    if options.ram is None:
        try:
            return Image.open(
                options.blk_file,
                read_only=options.read_only,
                direct=options.cache == "direct",
                discard=discard,
                locking=options.locking,
                share_rw=options.share_rw,
                raw=options.format == "raw",
            )
        except SetupError as error:
            raise SetupError(f"--blk-file={error}") from None
    _refuse_beside_ram(options)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if options.ram > memory:
        raise SetupError(f"--ram={options.ram}: more bytes than this host's memory has, {memory}")
    try:
        return Image.in_memory(options.ram, discard=discard)
    except OSError as error:
        raise SetupError(f"--ram={options.ram}: {error.strerror}") from None


def _refuse_beside_ram(options: argparse.Namespace) -> None:
    """Raises UsageError for what makes sense with a file or a block device only."""
    senseless = {
        "--read-only": options.read_only,
        "--format": options.format is not None,
        "--locking=on": options.locking == "on",
        "--share-rw": options.share_rw,
        "--cache=direct": options.cache == "direct",
    }
    for option, given in senseless.items():
        if given:
            raise UsageError(f"{option} makes no sense with --ram: it is for --blk-file")


def _choose_block_sizes(options: argparse.Namespace, image: Image) -> tuple[int, int]:
    """The logical and the physical block size, of which the image has a whole number from now on."""
    logical = options.logical_block_size or image.block_size
    physical = options.physical_block_size or max(image.physical_block_size, logical)
    if physical < logical:
        raise UsageError(f"--physical-block-size={physical} is less than the logical one, {logical}")
    if options.ram is not None and options.ram % logical:
        raise UsageError(f"--ram={options.ram}: not a whole number of blocks of {logical} bytes")
    image.set_block_size(logical)
    return logical, physical


def _cache(text: str) -> str:
    """A mode by our name, or by QEMU's where that is the same."""
    if text == "directsync":
        raise _refusal("'directsync' is not offered: --cache=writethrough makes each write durable at once")
    if text == "unsafe":
        raise _refusal("'unsafe' is not offered: a flush makes data durable in each mode; --ram keeps none")
    return "direct" if text == "none" else text


def _engine(text: str) -> str:
    if text == "native":
        raise _refusal("'native', the older interface of Linux, is not used: leave --aio out for io_uring")
    return text


def _block_size(text: str) -> int:
    number = size(text)
    if not SMALLEST_BLOCK <= number <= LARGEST_BLOCK or number & (number - 1):
        raise _refusal(f"{text!r} is not a power of two from {SMALLEST_BLOCK} to {LARGEST_BLOCK}")
    return number


def _num_queues(text: str) -> int:
    if not 1 <= _count(text) <= MAX_QUEUES:
        raise _refusal(f"{text!r} is not a number from 1 to {MAX_QUEUES}")
    return int(text)


def _poll(text: str) -> int:
    if _count(text) > MAX_POLL:
        raise _refusal(f"{text!r} is more than {MAX_POLL}, in which nobody else would be served")
    return int(text)


def _queue_size(text: str) -> int:
    if not MIN_QUEUE_SIZE <= _count(text) <= MAX_QUEUE_SIZE:
        raise _refusal(f"{text!r} is not a number from {MIN_QUEUE_SIZE} to {MAX_QUEUE_SIZE}")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal() or len(text) > MAX_DIGITS:
        raise _refusal(f"{text!r} is not a number")
    return int(text)


def _refusal(text: str) -> Exception:
    return argparse.ArgumentTypeError(text)
