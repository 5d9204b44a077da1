"""The back-end that a command talks to: one that listens, or one that the command starts."""

import argparse
import asyncio
import os
import signal
import socket
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from vhostd.ctl.machine.children import Child, how_it_ended
from vhostd.ctl.target_options import FOLDER, PLACE, words_with_socket
from vhostd.errors import SetupError
from vhostd.frontend.connecting import connected

PATIENCE = 10.0  # seconds that a program has to listen, and for its end
PAUSE = 0.01


class Target:
    """Connects to the back-end that the options say. Starts its program if none runs; ends it in the end."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Raises UsageError for a command that cannot be."""
        self._path: str = options.connect or ""
        self._command = words_with_socket(options.exec) if options.exec else []
        self._child: Child | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Self:
        if self._command:
            self._folder = tempfile.TemporaryDirectory(prefix="vhostctl-")
            self._path = str(Path(self._folder.name, "socket"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._folder:
            self._folder.cleanup()

    async def connect(self) -> socket.socket:
        """A new connection; raises SetupError. A program that does not run is started, once."""
        loop, started = asyncio.get_running_loop(), False
        end = loop.time() + PATIENCE
        while True:
            if self._command and (self._child is None or self._child.ended.done()):
                if started and self._child:
                    how = how_it_ended(self._child.ended.result())
                    raise SetupError(f"{self._command[0]} {how} before it listened")
                self._start()
                started = True
            try:
                return await connected(self._path, PATIENCE)
            except OSError as error:
                if self._child is None or loop.time() > end:
                    why = error.strerror or str(error) or f"nobody has taken it for {PATIENCE:.0f} s"
                    raise SetupError(f"cannot connect to {self._path}: {why}") from None
            await asyncio.wait([self._child.ended], timeout=PAUSE)

    async def stop(self) -> None:
        """Ends the program that was started, by SIGKILL if it takes long."""
        if self._child is not None:
            self._child.send(signal.SIGTERM)
            await asyncio.wait([self._child.ended], timeout=PATIENCE)
            self._child.send(signal.SIGKILL)
            await self._child.ended

    def _start(self) -> None:
        Path(self._path).unlink(missing_ok=True)  # of the one that has ended
        folder = str(Path(self._path).parent)
        command = [word.replace(PLACE, self._path).replace(FOLDER, folder) for word in self._command]
        self._child = Child(command, folder=Path.cwd(), environment=os.environ, fds=())
