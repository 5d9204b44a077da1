"""A port: the guest's two queues at one end, a line at the other."""

import select
import time
from collections.abc import Callable

from vhost_user_console.file_line import FileLine
from vhost_user_console.line import Line, Size
from vhost_user_console.outlet import MOST, FdOutlet, FileOutlet, Outlet
from vhost_user_console.told import Facts, News, Told
from vhost_user_console.transfers import Input
from vhostd import Chain, Virtqueue


class Port:
    """Carries bytes between its queues and its line, which it owns. A port without a name is a console.

    `changed` is called when there may be news for the driver, `resized` when the line has another size.
    """

    def __init__(self, number: int, line: Line, *, name: str = "", keep: int = 0) -> None:
        self.number = number
        self.name = name
        self.line = line
        self.size = line.size
        self.told = Told()
        self.changed: Callable[[], None] = lambda: None
        self.resized: Callable[[], None] = lambda: None
        self.guest_is_open = False
        kind = FileOutlet if isinstance(line, FileLine) else FdOutlet
        # The driver of a console waits with a spinlock held, and that of a serial port as a program does.
        self.outlet: Outlet = kind(f"port {number}", keep=keep, may_wait=bool(name))
        is_terminal = line.size is not None
        self._input = Input(self._look_at_size if is_terminal else None, self._ended)
        self._readable = select.epoll()  # of the fd that is read, which is another one for each client
        self._fd = -1  # of who is there, as far as the outlet knows
        line.changed = self._line_changed

    @property
    def is_console(self) -> bool:
        """Whether the guest may have a console there."""
        return not self.name

    # --- What the driver knows --------------------------------------------------------------------------

    def news(self) -> News | None:
        """What the driver should be told next."""
        facts = Facts(self.number, self.name.encode(), self.is_console, self.line.is_open, self.size)
        return self.told.news(facts)

    def guest_opens(self, *, on: bool) -> None:
        """The guest begins, or ends, to listen."""
        self.guest_is_open = on
        self.line.guest_listens(on=on)

    # --- The queues -------------------------------------------------------------------------------------

    async def receiveq(self, queue: Virtqueue) -> None:
        """Fills the driver's buffers, by a pump, while somebody is there and the guest listens."""
        await queue.pump(self._input, self._readable.fileno())

    async def transmitq(self, queue: Virtqueue) -> None:
        """Has the line get what the driver sends. What the shortcut leaves goes by way of the outlet."""
        queue.use_shortcut(self.outlet.output)
        async for chain in queue:
            if self.outlet.is_full:
                queue.put_back(chain)
                began = time.monotonic()
                await self.outlet.room()
                queue.count_throttled(time.monotonic() - began)
            else:
                self._take(chain)
                queue.push(chain)

    def close(self) -> None:
        """Closes the line; idempotent."""
        self._readable.close()
        self.outlet.close()
        self.line.close()

    def _take(self, chain: Chain) -> None:
        """Has what is left of a chain written; of a huge one the rest is dropped."""
        self.outlet.take(chain.read(min(chain.readable, MOST)))

    # --- The line ---------------------------------------------------------------------------------------

    def _line_changed(self) -> None:
        """Somebody has come or gone, or the terminal has another size."""
        line = self.line
        if self._fd != line.fd:
            self._fd = line.fd
            if self._fd >= 0:
                self.outlet.open(self._fd)
            else:
                self.outlet.shut()
                self.told.was_closed = self.told.is_open
        self._read(line.fd if line.has_input and self.guest_is_open else -1)
        self._look_at_size()
        self.changed()

    def _read(self, fd: int) -> None:
        """Reads from this fd from now on; -1 for none. The one before may be closed right after this."""
        if fd == self._input.fd:
            return
        if self._input.fd >= 0:
            self._readable.unregister(self._input.fd)
        if fd >= 0:
            self._readable.register(fd, select.EPOLLIN)
        self._input.fd = fd

    def _ended(self) -> None:
        """There is nothing more to be read."""
        self.line.input_ended()

    def _look_at_size(self) -> None:
        size: Size | None = self.line.size
        if size != self.size:
            self.size = size
            self.resized()
            self.changed()
