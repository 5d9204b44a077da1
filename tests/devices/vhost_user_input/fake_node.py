"""An evdev node without a kernel."""

import errno
from dataclasses import dataclass, field
from typing import NamedTuple


class Axis(NamedTuple):
    value: int
    min: int
    max: int
    fuzz: int
    flat: int
    resolution: int


@dataclass
class FakeNode:
    """What evdev.InputDevice gives, for a keyboard that is also a touchpad."""

    fd: int = -1
    info: tuple[int, ...] = (3, -2, 0x123, 0x111)
    name: str = "a node"
    uniq: str = "01:02"
    grabbed: bool = False
    grabs: int = 0
    taken: bool = False  # by another program
    late: list[int] = field(default_factory=list)  # keys that go down while it is being grabbed
    held: list[int] = field(default_factory=list)
    closed: bool = False
    values: dict[int, int] = field(default_factory=lambda: {0: 12, 0x2F: 1})

    def capabilities(self) -> dict[int, list[object]]:
        axes = [(code, self.absinfo(code)) for code in (0, 0x2F, 0x35, 0x39)]
        return {0: [0, 1, 3, 0x11, 0x14], 1: [30, 31], 3: list(axes), 0x11: [0, 1]}

    def input_props(self) -> list[int]:
        return [0, 2]

    def absinfo(self, axis_num: int) -> Axis:
        return Axis(self.values.get(axis_num, 0), 0, 1 if axis_num == 0x2F else 1000, 0, 0, 10)

    def grab(self) -> None:
        self.grabs += 1
        if self.taken:
            raise OSError(errno.EBUSY, "busy")
        self.grabbed = True
        if self.late:
            self.held.append(self.late.pop())

    def ungrab(self) -> None:
        self.grabbed = False

    def close(self) -> None:
        self.closed = True
