"""`vhostctl trace` at work."""

import argparse
import asyncio
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vhostd.ctl.ending import asked_to_end
from vhostd.ctl.output import printable
from vhostd.ctl.target import Target
from vhostd.errors import SetupError
from vhostd.program.endpoint import listen
from vhostd.program.log import write_line
from vhostd.trace.decoding import Decoder
from vhostd.trace.entries import AnyEntry, Message
from vhostd.trace.outlet import Outlet
from vhostd.trace.text import line_of
from vhostd.trace.tracing import Tracer

TURN = 0.0001  # seconds that a thread which writes lines may keep the relay waiting
PRIVATE = 0o600  # the mode of a recording, which may hold what the guest holds


def trace(options: argparse.Namespace) -> int:
    """Traces until a signal comes; returns the exit status. Raises SetupError."""
    sys.setswitchinterval(TURN)
    endpoint = listen(options.listen)
    try:
        with Target(options) as target, _outlets(options) as outlets, asyncio.Runner() as runner:
            tracer = Tracer(endpoint.socket, target.connect, outlets, memory=options.memory)
            runner.run(_run(tracer, target))
    finally:
        endpoint.close()
    return 0


async def _run(tracer: Tracer, target: Target) -> None:
    with asked_to_end() as signals:
        serving = asyncio.ensure_future(tracer.run())
        asked = asyncio.ensure_future(signals.get())
        await asyncio.wait((serving, asked), return_when=asyncio.FIRST_COMPLETED)
        serving.cancel()
        asked.cancel()
        await asyncio.gather(serving, asked, return_exceptions=True)
        await target.stop()


@contextmanager
def _outlets(options: argparse.Namespace) -> Iterator[list[Outlet]]:
    """Where the lines go: to stdout, unless it is closed, and to the file."""
    decoder = Decoder(options.type)
    outlets = []
    try:
        if options.write:
            outlets.append(Outlet(_file(options.write), _decoded(decoder, _json), _failure(options.write)))
        if sys.stdout is not None:
            spell = _json if options.json else _text
            outlets.append(Outlet(os.dup(sys.stdout.fileno()), _decoded(decoder, spell), _failure("stdout")))
        yield outlets
    finally:
        for outlet in outlets:
            outlet.close()


def _file(path: str) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOCTTY, PRIVATE)
    except OSError as error:
        raise SetupError(f"{path}: {error.strerror}") from None


def _decoded(decoder: Decoder, spell: Callable[[AnyEntry], str]) -> Callable[[AnyEntry], str]:
    return lambda entry: spell(decoder.decode(entry) if isinstance(entry, Message) else entry)


def _json(entry: AnyEntry) -> str:
    return entry.model_dump_json(exclude_defaults=True)


def _text(entry: AnyEntry) -> str:
    return printable(line_of(entry))


def _failure(name: str) -> Callable[[str], None]:
    return lambda why: _tell(f"{name}: {why}: nothing more is written there")


def _tell(line: str) -> None:
    write_line(f"vhostctl: {printable(line)}")
