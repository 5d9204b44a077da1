"""The agent's commands about displays: a program that paints, as a compositor does.

A display is named by the number of its connector. From the first command that paints until `release`
the console does not paint. Pictures are those of pattern.py, known by their seeds.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.guest.agent_loop import Loop
from tests.guest.kms import ARGB8888, EVENT_SIZE, Buffer, Card, Connector, Mode
from tests.guest.pattern import pattern

CURSOR_SIZE = 64


class Output:
    """A connector that we paint on: two buffers of the mode's size, and a cursor."""

    def __init__(self, card: Card, connector: Connector, mode: Mode) -> None:
        self.connector = connector
        self.shown, self.hidden = (card.create_buffer(mode.width, mode.height) for _ in range(2))
        self.cursor: Buffer | None = None


class DisplayCommands:
    """The card, open while we paint, and its outputs by number."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._card: Card | None = None
        self._outputs: dict[int, Output] = {}
        self._flips = 0

    def table(self) -> dict[str, Callable[..., Any]]:
        """The commands by name."""
        return {
            "displays": displays,
            "display_modes": self.modes,
            "wait_display": self.wait_display,
            "show": self.show,
            "paint": self.paint,
            "flip": self.flip,
            "show_cursor": self.show_cursor,
            "hide_cursor": self.hide_cursor,
            "move_cursor": self.move_cursor,
            "release": self.release,
        }

    def modes(self, display: int = 0) -> list[list[int]]:
        """The modes of a display, [width, height] each, the preferred one first; none without a monitor."""
        connector = self._open().connector(display)
        return [[mode.width, mode.height] for mode in connector.modes if connector.connected]

    def wait_display(self, width: int, height: int, display: int = 0) -> None:
        """Waits until a display prefers this mode."""
        self._loop.wait(
            lambda: self.modes(display)[:1] == [[width, height]], f"display {display} with {width}x{height}"
        )

    def show(self, width: int, height: int, seed: int, display: int = 0) -> None:
        """Sets a mode and shows a picture that fills it."""
        card = self._open()
        connector = card.connector(display)
        mode = next(mode for mode in connector.modes if (mode.width, mode.height) == (width, height))
        before = self._outputs.get(display)
        output = self._outputs[display] = Output(card, connector, mode)
        draw(output.shown, seed)
        card.show(connector, mode, output.shown)
        if before:
            card.destroy_buffer(before.shown)
            card.destroy_buffer(before.hidden)

    def paint(self, seed: int, display: int = 0) -> None:
        """Paints over what is shown, and says so."""
        buffer = self._outputs[display].shown
        draw(buffer, seed)
        self._open().mark_dirty(buffer)

    def flip(self, seed: int, display: int = 0) -> None:
        """Paints where it is not seen and then shows that; returns when it is shown."""
        output = self._outputs[display]
        draw(output.hidden, seed)
        before = self._flips
        self._open().flip(output.connector, output.hidden)
        self._loop.wait(lambda: self._flips > before, "the end of the page flip")
        output.shown, output.hidden = output.hidden, output.shown

    def show_cursor(self, seed: int, hot_x: int, hot_y: int, alpha: int, display: int = 0) -> None:
        """Shows a cursor that has this picture."""
        card, output = self._open(), self._outputs[display]
        before = output.cursor
        output.cursor = card.create_buffer(CURSOR_SIZE, CURSOR_SIZE, ARGB8888)
        output.cursor.write(pattern(CURSOR_SIZE, CURSOR_SIZE, seed, "BGRA", alpha))
        card.set_cursor(output.connector, output.cursor, hot_x, hot_y)
        if before:
            card.destroy_buffer(before)

    def hide_cursor(self, display: int = 0) -> None:
        """Shows no cursor."""
        self._open().set_cursor(self._outputs[display].connector, None, 0, 0)

    def move_cursor(self, x: int, y: int, display: int = 0) -> None:
        """Moves the cursor."""
        self._open().move_cursor(self._outputs[display].connector, x, y)

    def release(self) -> None:
        """Stops painting and frees everything, so that the console paints again."""
        if self._card:
            self._loop.unwatch(self._card.fd)
            for output in self._outputs.values():
                for buffer in (output.shown, output.hidden, output.cursor):
                    if buffer:
                        buffer.pixels.close()
            self._outputs = {}
            self._card.close()
            self._card = None

    def _open(self) -> Card:
        if not self._card:
            self._card = Card(card_path())
            self._loop.watch(self._card.fd, self._flipped)
        return self._card

    def _flipped(self) -> None:
        assert self._card
        os.read(self._card.fd, EVENT_SIZE)
        self._flips += 1


def draw(buffer: Buffer, seed: int) -> None:
    """Fills a buffer with a picture."""
    buffer.write(pattern(buffer.width, buffer.height, seed, "BGRX"))


def card_path() -> str:
    """The path of the display device. Raises LookupError if there is none."""
    for path in Path("/dev/dri").glob("card*"):
        return str(path)
    raise LookupError("there is no display device")


def displays() -> list[dict[str, Any]]:
    """What the kernel says of each connector: its name, whether it is connected, and its EDID in hex."""
    return [
        {
            "name": path.name.partition("-")[2],
            "status": (path / "status").read_text().strip(),
            "edid": (path / "edid").read_bytes().hex(),
        }
        for path in sorted(Path("/sys/class/drm").glob("card*-*"))
    ]
