"""A back-end behind `vhostctl trace`, for a guest."""

import subprocess
from contextlib import ExitStack
from pathlib import Path

from tests.programs import Program, executable, listens_at


class Trace:
    """A tracer of a back-end that listens at `path`. QEMU connects to `front`."""

    def __init__(self, path: Path, device: str | None, stack: ExitStack) -> None:
        self.front = path.with_suffix(".traced")
        self.file = path.with_suffix(".jsonl")
        command = [
            *(executable("vhostctl"), "trace", f"--listen={self.front}", f"--connect={path}"),
            *(f"--write={self.file}", *([f"--type={device}"] if device else [])),
        ]
        self.lines = path.with_suffix(".trace")
        with self.lines.open("wb") as lines:
            self.program = stack.enter_context(Program(command, stdout=lines.fileno(), stderr=lines.fileno()))
        self.program.until(lambda _: listens_at(self.front))

    def until(self, text: str) -> str:
        """All lines, once one of them has this text."""
        self.program.until(lambda _: text in self.lines.read_text())
        return self.lines.read_text()

    def replay(self, *options: str) -> subprocess.CompletedProcess[str]:
        """What `vhostctl replay` does with what was recorded so far, up to its last whole line."""
        kept = self.file.with_suffix(".kept")
        kept.write_bytes(self.file.read_bytes().rpartition(b"\n")[0])
        command = [executable("vhostctl"), "replay", str(kept), *options]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
