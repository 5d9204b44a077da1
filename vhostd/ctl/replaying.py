"""`vhostctl replay` at work."""

import argparse
import asyncio
from collections.abc import Callable

from vhostd.ctl.target import Target
from vhostd.errors import SetupError
from vhostd.trace.recording import entries
from vhostd.trace.replay import Replay


def replay(options: argparse.Namespace, tell: Callable[[str], None]) -> Replay:
    """Replays one connection; returns what came of it. Raises SetupError."""
    if not any(True for _ in entries(options.file, options.connection)):
        raise SetupError(f"{options.file} has no connection {options.connection}")
    with Target(options) as target, asyncio.Runner() as runner:
        return runner.run(_run(options, target, tell))


async def _run(options: argparse.Namespace, target: Target, tell: Callable[[str], None]) -> Replay:
    try:
        recorded = entries(options.file, options.connection)
        sock = await target.connect()
        made = Replay(sock, recorded, tell, device=options.type, memory=options.memory)
        await made.run(entries(options.file, options.connection))
    finally:
        await target.stop()
    return made
