"""Accepts the clients of a socket that listens."""

import asyncio
import logging
import socket

log = logging.getLogger(__name__)

PAUSE = 1.0  # seconds until the next try after accept(2) failed


async def accept(listener: socket.socket, name: str) -> socket.socket:
    """The next client, which does not block.

    If none can be accepted, as no fd is free, that is logged with the listener's `name`, and tried again.
    """
    while True:
        try:
            client, _ = await asyncio.get_running_loop().sock_accept(listener)
        except OSError as error:
            log.warning("%s: no client can be accepted: %s", name, error.strerror)
            await asyncio.sleep(PAUSE)
        else:
            client.setblocking(False)
            return client
