"""The agent's commands that run programs inside the guest."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any

from tests.guest.agent_loop import Loop

OUTPUT_SIZE = 65536


class Program:
    """A running child process; stdout and stderr are collected together."""

    def __init__(self, loop: Loop, argv: Sequence[str]) -> None:
        self._loop = loop
        self.argv = argv
        self.output = b""
        self._ended = False
        self._output_fd, child_end = os.pipe()
        try:
            self.process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=child_end, stderr=child_end, start_new_session=True
            )
        except OSError:
            os.close(self._output_fd)
            raise
        finally:
            os.close(child_end)
        self._pidfd = os.pidfd_open(self.process.pid)
        loop.watch(self._output_fd, self._collect)
        loop.watch(self._pidfd, self._reap)

    def wait(self) -> dict[str, Any]:
        """The exit status (minus the signal's number if one ended it) and the whole output."""
        # A grandchild may hold the pipe open: what the program itself wrote is there when it ends.
        self._loop.wait(lambda: self._ended, f"the end of {self.argv[0]}")
        self._loop.drain()
        return {"status": self.process.returncode, "output": self.text()}

    def wait_output(self, text: str) -> str:
        """The output, once it contains `text`. Raises RuntimeError when the program ended without."""
        self._loop.wait(lambda: text in self.text() or self._ended, f"{text!r} from {self.argv[0]}")
        self._loop.drain()
        if text not in self.text():
            raise RuntimeError(f"{self.argv[0]} ended without {text!r}: {self.text()}")
        return self.text()

    def signal(self, name: str) -> None:
        """Sends the signal of this name (SIGTERM) to the program; nothing if it has ended."""
        self.process.send_signal(signal.Signals[name])

    def text(self) -> str:
        """What the program has written so far."""
        return self.output.decode(errors="replace")

    def _collect(self) -> None:
        data = os.read(self._output_fd, OUTPUT_SIZE)
        if not data:
            self._loop.unwatch(self._output_fd)
            os.close(self._output_fd)
        self.output += data

    def _reap(self) -> None:
        self.process.wait()
        self._loop.unwatch(self._pidfd)
        os.close(self._pidfd)
        self._ended = True


class ProgramCommands:
    """Running programs, each known to the host by its process id."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._programs: dict[int, Program] = {}

    def table(self) -> dict[str, Callable[..., Any]]:
        """The commands by name."""
        return {
            "run": self.run,
            "start": self.start,
            "finish": self.finish,
            "wait_output": self.wait_output,
            "signal": self.signal,
        }

    def run(self, argv: Sequence[str]) -> dict[str, Any]:
        """Runs a program to its end; kills it if that is not in time."""
        return self.finish(self.start(argv))

    def start(self, argv: Sequence[str]) -> int:
        """Starts a program in the background; the result names it in the other commands."""
        program = Program(self._loop, argv)
        self._programs[program.process.pid] = program
        return program.process.pid

    def finish(self, pid: int) -> dict[str, Any]:
        """Waits for a program's end: {"status", "output"}; kills it if that is not in time."""
        program = self._programs.pop(pid)
        try:
            return program.wait()
        except TimeoutError as error:
            program.signal("SIGKILL")
            self._loop.deadline = time.monotonic() + 5
            raise TimeoutError(f"{error}; its output: {program.wait()['output']}") from None

    def wait_output(self, pid: int, text: str) -> str:
        """Waits until a program has written `text`; the result is its output so far."""
        return self._programs[pid].wait_output(text)

    def signal(self, pid: int, name: str = "SIGTERM") -> None:
        """Sends a signal to a program."""
        self._programs[pid].signal(name)
