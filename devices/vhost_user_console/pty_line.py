"""A pseudo-terminal as a port's line: whoever opens it is there."""

import asyncio
import os
import select
import termios
import tty
from contextlib import ExitStack, suppress

from vhost_user_console.hang_up import HangUp
from vhost_user_console.line import Line, Size
from vhost_user_console.link_file import LinkFile
from vhost_user_console.openings import Openings
from vhostd import Fd, Grants, Ioctl, SetupError

SIZE_INTERVAL = 1.0  # seconds between looks at the size
PAGE = 4096
PAGES = 32  # of which the kernel keeps fewer, of what was typed


class PtyLine(Line):
    """Makes a pseudo-terminal, in raw mode, with a link to it if `link` is a path.

    Its master hangs up while nobody has the slave open. Each read would fail with EIO then, so nobody reads.
    Of another size of the terminal the kernel tells the processes at the slave, and not the master. So that
    is looked at whenever somebody opens or closes the slave, whenever something comes from there, and each
    second while somebody has it open. A process of ours at the slave would be told at once; but then the
    master would not hang up when all others have gone.
    """

    def __init__(self, link: str | None = None) -> None:
        super().__init__()
        self._is_there = asyncio.Event()  # somebody is
        self._link: LinkFile | None = None
        try:
            with ExitStack() as undo:
                self._master, self.path = _make()
                undo.callback(self._master.close)
                self._openings = Openings(self.path)
                undo.callback(self._openings.close)
                self._watch = HangUp(self._look)
                undo.callback(self._watch.close)
                self._watch.add(self._master.fileno())
                if link is not None:
                    self._link = LinkFile(link, self.path)
                    undo.callback(self._link.remove)
                self._undo = undo.pop_all()
        except OSError as error:
            raise SetupError(f"a pseudo-terminal: {error.strerror}") from None

    @property
    def place(self) -> str:
        return self.path if self._link is None else f"{self._link.path}, {self.path}"

    @property
    def size(self) -> Size | None:
        return Size.of_terminal(self._master.fileno())

    def grants(self) -> Grants:
        """To ask for the size, and to remove the link."""
        grants = Grants(ioctls=(Ioctl(termios.TIOCGWINSZ),))
        return grants if self._link is None else Grants.together((grants, self._link.grants()))

    async def run(self) -> None:
        """Sees who opens it, and that nobody has it open any more."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._openings.fileno(), self._look)
        self._watch.start()
        self._look()  # somebody may have been faster
        try:
            await self._follow_size()
        finally:
            self._watch.stop()
            loop.remove_reader(self._openings.fileno())

    def input_ended(self) -> None:
        """Nobody has it open, and all that they typed was taken."""
        self._is_there.clear()
        self._hung_up = True
        super().input_ended()

    def close(self) -> None:
        """Removes the link and the terminal; idempotent."""
        self._undo.close()

    async def _follow_size(self) -> None:
        """Looks at the size now and then, while somebody is there who may change it."""
        size = self.size
        while True:
            await self._is_there.wait()
            await asyncio.sleep(SIZE_INTERVAL)
            if size != self.size:
                size = self.size
                self.changed()

    def _opened(self, fd: int) -> None:
        self._is_there.set()
        super()._opened(fd)

    def _hang_up(self) -> None:
        self._is_there.clear()
        super()._hang_up()

    def _drop(self) -> None:
        """What nobody has taken of them is not for the next one, as with a socket."""
        has_more = self.has_input
        super()._drop()
        if not has_more:  # what is there is the next one's, who was quick
            return
        with suppress(OSError):  # there is nothing
            for _ in range(PAGES):
                os.read(self._master.fileno(), PAGE)

    def _look(self) -> None:
        """Somebody has opened or closed it, or both."""
        self._openings.clear()
        hangs_up, has_bytes = self._state()
        if has_bytes or not hangs_up:
            self._opened(self._master.fileno())
        if hangs_up:
            self._hang_up()

    def _state(self) -> tuple[bool, bool]:
        """Whether it hangs up, and whether there is something to read."""
        poll = select.poll()
        poll.register(self._master, select.POLLIN)
        events = dict(poll.poll(0)).get(self._master.fileno(), 0)
        return bool(events & select.POLLHUP), bool(events & select.POLLIN)


def _make() -> tuple[Fd, str]:
    """The master of a new pseudo-terminal, and the path of its slave. From now on it hangs up."""
    master, slave = os.openpty()
    try:
        tty.setraw(slave)
        path = os.ttyname(slave)
        os.set_blocking(master, False)
    except BaseException:
        os.close(master)
        raise
    finally:
        os.close(slave)
    return Fd(master), path
