"""A device behind the tracer, and behind a replay, in one process."""

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from vhostd.frontend import Frontend
from vhostd.trace.decoding import Decoder
from vhostd.trace.entries import ENTRIES, AnyEntry, Entry, Message
from vhostd.trace.replay import Replay
from vhostd.trace.session import Session as Traced
from vhostd.vhost_user.messages import FRONT_END
from vhostd.vhost_user.offer import DEFAULT_OFFER, Offer
from vhostd.vhost_user.session import Session
from vhostd.virtio.device import Device
from vhostd.wire.channel import Channel


@asynccontextmanager
async def recorded(
    device: Device, entries: list[AnyEntry], *, memory: bool = False, offer: Offer = DEFAULT_OFFER
) -> AsyncIterator[Frontend]:
    """A front-end of the device, of which all is recorded. `entries` are complete after the block."""
    (front, ours), (theirs, back) = socket.socketpair(), socket.socketpair()
    traced = Traced(1, lambda: 0.0, entries.append, memory=memory)
    tasks = (
        asyncio.create_task(Session(device, Channel(back, FRONT_END), offer=offer).run()),
        asyncio.create_task(traced.run(ours, theirs)),
    )
    frontend = Frontend(front)
    try:
        yield frontend
    finally:
        frontend.close()
        await asyncio.gather(*tasks)


def as_read(entries: Sequence[AnyEntry]) -> list[Entry]:
    """The entries as a file gives them back."""
    decoder = Decoder()
    decoded = [decoder.decode(each) if isinstance(each, Message) else each for each in entries]
    lines = [each.model_dump_json(exclude_defaults=True) for each in decoded]
    read = [ENTRIES.validate_json(line) for line in lines]
    assert read == decoded
    return [each for each in read if isinstance(each, Entry)]


async def replayed(
    device: Device, entries: Sequence[AnyEntry], *, memory: bool = False
) -> tuple[Replay, list[str]]:
    """What comes of a replay to the device, and the differences that were told."""
    ours, theirs = socket.socketpair()
    serving = asyncio.create_task(Session(device, Channel(theirs, FRONT_END)).run())
    told: list[str] = []
    read = as_read(entries)
    replay = Replay(ours, read, told.append, device=None, memory=memory)
    await replay.run(read)
    await serving
    return replay, told
