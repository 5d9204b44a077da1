"""Asks a program for its capabilities in the same way as libvirt.

libvirt waits without a limit, and reads all that the program prints. Here both have limits.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from selectors import EVENT_READ, DefaultSelector

from vhostd.host.signals import signal_name

PATIENCE = 10.0  # seconds
OUTPUT_LIMIT = 4 << 20  # bytes
ARGUMENT = "--print-capabilities"


@dataclass(frozen=True)
class Answer:
    """A program's answer. `fault`: why it could not be started. `excess`: the limit at which it was stopped.

    `status` is negative for a signal, as in subprocess.
    """

    fault: str = ""
    excess: str = ""
    status: int = 0
    output: bytes = b""
    errors: bytes = b""
    seconds: float = 0.0

    @property
    def end(self) -> str:
        """How the program ended, as the end of a sentence; empty for exit status 0."""
        if self.status < 0:
            return f"is killed by {signal_name(-self.status)}"
        return f"exits with status {self.status}" if self.status else ""


def ask(binary: str | None, patience: float = PATIENCE) -> Answer:
    """Runs a program with the arguments, folder, standard files, umask and variables that libvirt uses."""
    if binary is None:
        return Answer("it names no program")
    path = find(binary)
    if path is None:
        return Answer(f"there is no program {binary!r}")
    start = time.monotonic()
    excess, output, errors = "it was interrupted", b"", b""
    with ExitStack() as ending:
        try:
            with _handlers_delayed():
                process = ending.enter_context(_start(binary, path))
                ending.callback(lambda: _kill(process) if excess else None)
        except OSError as error:
            return Answer(f"{path} cannot be started: {error.strerror}")
        excess, output, errors = _collect(process, start + patience, patience)
    return Answer("", excess, process.returncode, output, errors, time.monotonic() - start)


def _start(binary: str, path: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [binary, ARGUMENT],
        executable=path,
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(os.environ, privileged=os.geteuid() == 0),
        umask=0o022,
        start_new_session=True,  # so that it can be stopped together with its children
    )


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def _handlers_delayed() -> Iterator[None]:
    """Runs this process's signal handlers a little later. A signal mask would be inherited by the child."""
    came: list[int] = []
    taken = {each: signal.getsignal(each) for each in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)}
    handlers = {each: handler for each, handler in taken.items() if callable(handler)}
    for each in handlers:
        signal.signal(each, lambda number, _: came.append(number))
    try:
        yield
    finally:
        for each, handler in handlers.items():
            signal.signal(each, handler)
        for number in came:
            signal.raise_signal(number)


def find(binary: str) -> str | None:
    """The file that libvirt starts for a description's binary."""
    if binary.startswith("/"):
        return binary
    return f"/{binary}" if "/" in binary else shutil.which(binary)


def environment(variables: Mapping[str, str], *, privileged: bool) -> dict[str, str]:
    """The variables of libvirtd: as a service, little more than PATH; a user's own has all the user's."""
    return {name: value for name, value in variables.items() if not privileged or name == "PATH"}


def _collect(process: subprocess.Popen[bytes], end: float, patience: float) -> tuple[str, bytes, bytes]:
    """The excess, if any, and the program's stdout and stderr. With an excess the program still runs."""
    output, errors = bytearray(), bytearray()
    late = f"it has not ended within {patience:g} s"
    with DefaultSelector() as selector:
        for pipe, written in ((process.stdout, output), (process.stderr, errors)):
            if pipe:
                selector.register(pipe, EVENT_READ, written)
        while selector.get_map():
            for key, _ in selector.select(max(0.0, end - time.monotonic())):
                data = os.read(key.fd, 1 << 16)
                key.data.extend(data)
                if not data:
                    selector.unregister(key.fileobj)
            if len(output) + len(errors) > OUTPUT_LIMIT:
                return f"it prints more than {OUTPUT_LIMIT >> 20} MiB", bytes(output), bytes(errors)
            if selector.get_map() and time.monotonic() >= end:
                return late, bytes(output), bytes(errors)
    try:
        process.wait(max(0.0, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        return late, bytes(output), bytes(errors)
    return "", bytes(output), bytes(errors)
