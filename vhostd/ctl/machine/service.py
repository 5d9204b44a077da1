"""A device's program: it listens from the first moment, and is started again where QEMU takes it back."""

import asyncio
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from vhostd.ctl.machine.children import Child, first_of, how_it_ended
from vhostd.ctl.machine.devices import Device
from vhostd.errors import SetupError
from vhostd.program.activation import VARIABLES
from vhostd.program.endpoint import BACKLOG

MOST_ENDS = 5  # of a program within WINDOW, after which it is given up
WINDOW = 60.0  # seconds
PAUSE = 1.0  # seconds before the second and each further start
PATIENCE = 10.0  # seconds that a program has for its end
READY = b"READY=1"


class Service:
    """One device's program, from its first start until `stop`.

    The listening socket is made here and outlives the program: QEMU's connections wait in it while the
    program starts again.
    """

    def __init__(self, device: Device, folder: Path, tell: Callable[[str], None]) -> None:
        """`folder` is the machine's own; `tell` hears what a user must know."""
        self.device = device
        self._folder = folder
        self._tell = tell
        self._ends: deque[float] = deque(maxlen=MOST_ENDS)
        self._child: Child | None = None
        notices = folder / f"{device.name}.notify"
        self._environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
        self._environment |= {"NOTIFY_SOCKET": str(notices)}
        with ExitStack() as failing:
            self._listener = failing.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            self._listener.bind(str(device.socket(folder)))
            self._listener.listen(BACKLOG)
            self._notices = failing.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            self._notices.bind(str(notices))
            failing.pop_all()
        self._serves = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._notices, self._hear)

    def start(self) -> Child:
        """Starts the program; raises SetupError."""
        device = self.device
        fd = self._listener.fileno()
        command = [str(device.program), f"--fd={fd}", *device.arguments(self._folder)]
        self._child = Child(command, folder=device.folder, environment=self._environment, fds=[fd])
        return self._child

    async def ready(self, child: Child) -> int | None:
        """Waits until the program serves, and returns None; or until it ends, and returns its status."""
        serving = asyncio.ensure_future(self._serves.wait())
        try:
            await first_of(serving, child.ended)
        finally:
            serving.cancel()
        return child.ended.result() if child.ended.done() else None

    async def keep(self, child: Child) -> None:
        """Starts the program again whenever it ends, until it is given up or this is cancelled."""
        while True:
            status = await asyncio.shield(child.ended)
            what = f"{self.device} {how_it_ended(status)}"
            kind = self.device.kind.name
            if not self.device.kind.comes_back:
                loss = f"the guest has lost its {kind}, which QEMU cannot take back"
                self._tell(f"{what}: {loss}{self.device.kind.loss}")
                return
            self._ends.append(time.monotonic())
            if len(self._ends) == MOST_ENDS and self._ends[-1] - self._ends[0] < WINDOW:
                self._tell(f"{what}, too often, and is not started again: the guest's {kind} does not answer")
                self._close_listener()
                return
            self._tell(f"{what}, and is started again")
            if len(self._ends) > 1:
                await asyncio.sleep(PAUSE)
            try:
                child = self.start()
            except SetupError as error:
                self._tell(f"{error}: the guest's {kind} does not answer")
                self._close_listener()
                return

    async def stop(self) -> None:
        """Ends the program, by SIGKILL if it takes long."""
        self._close_listener()
        if self._child is not None:
            self._child.send(signal.SIGTERM)
            await asyncio.wait([self._child.ended], timeout=PATIENCE)
            self._child.send(signal.SIGKILL)
            await self._child.ended
        asyncio.get_running_loop().remove_reader(self._notices)
        self._notices.close()

    def _hear(self) -> None:
        """Takes what the program tells of itself; what is not taken would keep it waiting."""
        if READY in self._notices.recv(4096, socket.MSG_DONTWAIT).split(b"\n"):
            self._serves.set()

    def _close_listener(self) -> None:
        """From here on QEMU is refused at once, instead of waiting for a program that does not come."""
        self._listener.close()
