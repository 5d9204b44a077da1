"""What the driver has been told of a port, and what it has to be told next (virtio 1.3, 5.3.6.2).

No message is kept. As soon as the driver has room for a message, what it knows is compared to what is true.
So nothing grows with a driver that takes no messages, or that asks for them again and again.
"""

from typing import NamedTuple

from vhost_user_console.line import Size
from vhost_user_console.protocol import Event

UNKNOWN = Size(0, 0)  # of a terminal whose size nobody has set: so it is at the start


class Facts(NamedTuple):
    """What is true of a port."""

    number: int
    name: bytes
    is_console: bool
    is_open: bool
    size: Size | None


class News(NamedTuple):
    """A control message, but for the port's number."""

    event: int
    value: int = 0
    size: Size | None = None


class Told:
    """What the driver knows of a port."""

    def __init__(self) -> None:
        self.is_added = False
        self.is_ready = False  # the driver said so, and may be told the rest
        self.is_console = False
        self.has_name = False
        self.is_open = False
        self.was_closed = False  # it has to hear of an end before it hears of a beginning
        self.size: Size | None = UNKNOWN

    def news(self, facts: Facts) -> News | None:
        """The next message that the driver should have; None if it knows everything."""
        if not self.is_added:
            return News(Event.PORT_ADD, 1)
        if not self.is_ready:
            return None
        if facts.is_console and not self.is_console:
            return News(Event.CONSOLE_PORT, 1)
        if facts.name and not self.has_name:
            return News(Event.PORT_NAME, 1)
        if self.is_open and (self.was_closed or not facts.is_open):
            return News(Event.PORT_OPEN, 0)
        if facts.is_open and not self.is_open:
            return News(Event.PORT_OPEN, 1)
        if facts.is_console and facts.size not in (None, self.size):
            return News(Event.RESIZE, 0, facts.size)
        return None

    def tell(self, news: News) -> None:
        """The driver was told."""
        match news.event:
            case Event.PORT_ADD:
                self.is_added = True
            case Event.CONSOLE_PORT:
                self.is_console = True
            case Event.PORT_NAME:
                self.has_name = True
            case Event.PORT_OPEN:
                self.is_open, self.was_closed = bool(news.value), False
            case Event.RESIZE:
                self.size = news.size
