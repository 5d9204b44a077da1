"""Kicks from an fd, until it can bring none any more."""

import asyncio
import os

from tests.conftest import Run
from vhostd.vhost_user.kicks import KickFd
from vhostd.vhost_user.notification import notification
from vhostd.wire.fds import Fd

PATIENCE = 20.0  # seconds for what takes none: it only bounds how long a fault is waited for


def test_an_fd_whose_other_end_is_closed_is_let_go_and_not_named_any_more(run_async: Run) -> None:
    async def main() -> None:
        ours, theirs = os.pipe()
        kicked = asyncio.Event()
        kicks = KickFd(notification(Fd(ours)), "vring 0", kicked.set)
        os.write(theirs, b"!")
        await kicked.wait()
        assert kicks.name == "kick"
        os.close(theirs)
        async with asyncio.timeout(PATIENCE):
            while kicks.name:
                await asyncio.sleep(0)
        kicks.close()

    run_async(main)
