"""The agent's commands about a virtio-gpu device without Linux's driver."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tests.guest.pattern import pattern

if TYPE_CHECKING:
    from tests.guest.inside.raw_gpu import RawGpu

ANSWER_TIMEOUT = 10.0


class RawGpuCommands:
    """The device, while it is not Linux's."""

    def __init__(self) -> None:
        self._gpu: RawGpu | None = None

    def table(self) -> dict[str, Callable[..., Any]]:
        """The commands by name."""
        return {
            "raw_gpu_take": self.take,
            "raw_gpu_request": self.request,
            "raw_gpu_draw": self.draw,
            "raw_gpu_give_back": self.give_back,
        }

    def take(self) -> dict[str, int]:
        """Takes the device away from Linux: the "address" and "size" of the memory for pictures."""
        from tests.guest.inside.raw_gpu import RawGpu

        self._gpu = RawGpu()
        return {"address": self._gpu.backing, "size": self._gpu.backing_size}

    def request(self, data: str) -> str:
        """The device's response to a command, both in hex."""
        assert self._gpu
        return self._gpu.request(bytes.fromhex(data), time.monotonic() + ANSWER_TIMEOUT).hex()

    def draw(self, width: int, height: int, seed: int, order: str) -> None:
        """Writes a picture of pattern.py to the memory for pictures, with this order of bytes."""
        assert self._gpu
        self._gpu.write(pattern(width, height, seed, order))

    def give_back(self) -> None:
        """Lets Linux have the device again."""
        assert self._gpu
        self._gpu.close()
        self._gpu = None
