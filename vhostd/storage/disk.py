"""A disk: an image, the engine that works on it, and whose turn it is."""

import logging
import os
from collections.abc import Sequence

from vhostd.host.grants import Grants
from vhostd.ring import Chain
from vhostd.storage.clearing import discarding, erasing, zeroing
from vhostd.storage.engine import Engine, Result, Steps, Then, do_steps
from vhostd.storage.image import Image
from vhostd.storage.read_write import ReadWrite
from vhostd.storage.shares import Shares

log = logging.getLogger(__name__)

TURNS = 1 << 16  # shares of the disk: a write needs one, or all if it rewrites a part of what the host writes
BOUNCES = 16  # steps at a time that need memory of ours

Range = tuple[int, int]  # offset and size in bytes


class Disk:
    """Does with an image what chains of a guest ask for; owns the image and the engine.

    Each request ends by a call of its `then`: with 0 or more, with -errno, which the log tells as well, or
    with an exception that is no OSError. That may be before the method returns. Requests end in any order.
    One whose chain was given up ends soon, with -ECANCELED if something is left of it.
    """

    def __init__(self, image: Image, engine: Engine) -> None:
        self.image = image
        self.engine = engine
        self.turns = Shares(TURNS)
        self.bounces = Shares(BOUNCES)

    def grants(self) -> Grants:
        """What the image and the engine need."""
        return Grants.together([self.image.grants(), self.engine.grants()])

    def read(self, chain: Chain, offset: int, size: int, then: Then) -> None:
        """Reads into the chain's writable stream; zeros behind the end of the file."""
        reading = ReadWrite(self, chain, offset, size, then, writing=False)
        self.turns.take(0, reading.begin)

    def write(self, chain: Chain, offset: int, size: int, then: Then, *, durable: bool) -> None:
        """Writes from the chain's readable stream; to stable storage if it is to be `durable`."""
        turns = self._turns_of([(offset, size)])
        writing = ReadWrite(self, chain, offset, size, then, writing=True, durable=durable, turns=turns)
        self.turns.take(turns, writing.begin)

    def go_on(
        self, chain: Chain, offset: int, left: int, result: int, then: Then, *, writing: bool, durable: bool
    ) -> None:
        """Goes on with a read or a write that somebody else has begun, and whose first step ended so."""
        ReadWrite(self, chain, offset, left, then, writing=writing, durable=durable)(result)

    def flush(self, chain: Chain, then: Then) -> None:
        """Puts all that was written before on stable storage."""
        if self.image.read_only or self.image.is_memory:
            then(0)
        else:
            self.engine.fdatasync(
                chain, self.image.fd, lambda result: self.end(chain, "flush", 0, result, then)
            )

    def discard(self, chain: Chain, ranges: Sequence[Range], then: Then) -> None:
        """Gives back the space of ranges, whose contents may be anything then."""
        self._do(chain, "discard", ranges, self._discarding(ranges), then)

    def zero(
        self, chain: Chain, ranges: Sequence[Range], may_unmap: Sequence[bool], then: Then, *, durable: bool
    ) -> None:
        """Zeroes ranges, and gives the space of those back that may be unmapped, if the host can."""
        self._do(chain, "write zeroes", ranges, self._zeroing(ranges, may_unmap, durable=durable), then)

    def erase(self, chain: Chain, ranges: Sequence[Range], then: Then) -> None:
        """Erases ranges of a block device beyond recovery."""
        self._do(chain, "secure erase", ranges, self._erasing(ranges), then)

    def end(self, chain: Chain, what: str, offset: int, result: Result, then: Then) -> None:
        """Ends a request at this offset; an error that the guest waits for is logged."""
        if isinstance(result, int) and result < 0 and not chain.given_up:
            log.error("%s at %d of %s: %s", what, offset, self.image.path, os.strerror(-result))
        then(result)

    def close(self) -> None:
        """Ends what is under way, and closes the image."""
        self.engine.close()
        self.image.close()

    def _turns_of(self, ranges: Sequence[Range]) -> int:
        """How many of `turns` are needed to change these ranges.

        Where the host's unit is larger than a sector, a part of one is read, modified and written. What
        others write into the same unit meanwhile would be lost.
        """
        unit = self.image.unit
        return TURNS if any((offset | size) % unit for offset, size in ranges) else 1

    def _do(self, chain: Chain, what: str, ranges: Sequence[Range], steps: Steps, then: Then) -> None:
        """Has the engine do one step after the other."""
        turns = self._turns_of(ranges)

        def done(result: Result) -> None:
            self.turns.give(turns)
            self.end(chain, what, 0, result, then)

        self.turns.take(turns, lambda: self.engine.do(chain, lambda: do_steps(chain, steps), done))

    def _discarding(self, ranges: Sequence[Range]) -> Steps:
        for offset, size in ranges:
            yield from discarding(self.image, offset, size)

    def _zeroing(self, ranges: Sequence[Range], may_unmap: Sequence[bool], *, durable: bool) -> Steps:
        for (offset, size), unmap in zip(ranges, may_unmap, strict=True):
            yield from zeroing(self.image, offset, size, may_unmap=unmap)
        if durable:
            os.fdatasync(self.image.fd)
            yield None

    def _erasing(self, ranges: Sequence[Range]) -> Steps:
        for offset, size in ranges:
            yield from erasing(self.image, offset, size)
