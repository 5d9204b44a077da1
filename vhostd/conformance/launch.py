"""The back-end's program once more, beside the one that is checked, with other arguments."""

import asyncio
import os
import shlex
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from vhostd.conformance.subject import Subject
from vhostd.conformance.verdict import Failed, skip
from vhostd.frontend import Backend
from vhostd.wire.fds import Fd

OPTION = "--socket-path"


class Ended(NamedTuple):
    """A program that has ended: its status, or minus the signal, and what it has said."""

    status: int
    output: bytes
    errors: bytes


class Command:
    """The command that starts the subject, taken apart at the word that has its socket's path.

    The check is skipped if there is none, or if it is in a script, where no option can be added.
    """

    def __init__(self, subject: Subject) -> None:
        self._patience = subject.patience
        self.words = [] if subject.program is None else subject.program.command
        self._place = next((at for at, word in enumerate(self.words) if "{socket}" in word), -1)
        if self._place < 0:
            skip("its command has no socket's path")
        if " " in self.words[self._place]:
            skip("its command is a script, to which no option can be added")

    @property
    def option(self) -> str:
        """The option by which the socket's path is given."""
        word = self.words[self._place]
        return self.words[self._place - 1] if word == "{socket}" else word.partition("=")[0]

    def with_socket(self, *words: str) -> list[str]:
        """The command with these words in place of what says where its socket is."""
        first = self._place - 1 if self.words[self._place] == "{socket}" else self._place
        return [*self.words[:first], *words, *self.words[self._place + 1 :]]

    async def ends(self, *options: str, path: str = "{folder}/vhost.sock", fds: Sequence[Fd] = ()) -> Ended:
        """Runs it to its end with more options; Failed if it goes on."""
        with TemporaryDirectory(prefix="backend-") as folder:
            words = [
                word.replace("{socket}", path).replace("{folder}", folder) for word in (*self.words, *options)
            ]
            ended = await self._run(words, fds)
            if Path(path.replace("{folder}", folder)).exists():
                raise Failed(f"it has made a socket, given {shlex.join(options)}")
        return ended

    async def _run(self, words: Sequence[str], fds: Sequence[Fd]) -> Ended:
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=pipe,
            stderr=pipe,
            pass_fds=[fd.fileno() for fd in fds],
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(self._patience):
                output, errors = await process.communicate()
        except TimeoutError:
            raise Failed(f"it goes on: {shlex.join(words[-2:])}") from None
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        return Ended(process.returncode or 0, output, errors)


class Stale(Backend):
    """A program that finds a socket at its path where nobody listens any more."""

    def _start(self) -> None:
        if not self._path.exists():
            with socket.socket(socket.AF_UNIX) as sock:
                sock.bind(str(self._path))
        super()._start()
