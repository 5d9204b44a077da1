"""A process that does not outlive us, and whose end is an event."""

import asyncio
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from vhostd.errors import SetupError
from vhostd.host.signals import signal_name
from vhostd.host.syscall import PRCTL, syscall

PR_SET_PDEATHSIG = 1


class Child:
    """A started process. `ended` gets its exit status, negative for a signal, as in subprocess.

    It gets SIGTERM when this process ends, even by SIGKILL.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        folder: Path,
        environment: Mapping[str, str] | None = None,
        fds: Sequence[int] | None = None,
    ) -> None:
        """With `fds` the process is in the background: it has those fds and no others, and no terminal.

        Then what it has started gets its signals, too, and is killed when it has ended.

        Without, it has all that we were started with. Raises SetupError if it cannot be started.
        """
        parent = os.getpid()
        self._leads = background = fds is not None  # a process group
        try:
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL if background else None,
                stdout=subprocess.DEVNULL if background else None,
                close_fds=background,
                pass_fds=fds or (),
                start_new_session=background,
                preexec_fn=lambda: _end_with(parent),
            )
        except OSError as error:
            raise SetupError(f"{command[0]} cannot be started: {error.strerror}") from None
        loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[int] = loop.create_future()
        self._pidfd = os.pidfd_open(self._process.pid)
        loop.add_reader(self._pidfd, self._reap)

    def send(self, number: signal.Signals) -> None:
        """Sends a signal, unless the process has ended."""
        if not self.ended.done():
            self._signal(number)

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            if self._leads:
                os.killpg(self._process.pid, number)
            else:
                signal.pidfd_send_signal(self._pidfd, number)

    def _reap(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        if self._leads:  # before it is reaped: nobody else can have its number
            self._signal(signal.SIGKILL)
        os.close(self._pidfd)
        self.ended.set_result(self._process.wait())


def _end_with(parent: int) -> None:
    """Runs in the child, before its program: the kernel is to end it with its parent."""
    syscall(PRCTL, PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # which ended meanwhile
        os.kill(os.getpid(), signal.SIGTERM)


async def first_of(*futures: asyncio.Future[Any]) -> None:
    """Waits until one of them is done."""
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)


def how_it_ended(status: int) -> str:
    """The end of a sentence."""
    if status < 0:
        return f"was killed by {signal_name(-status)}"
    return f"ended with status {status}"
