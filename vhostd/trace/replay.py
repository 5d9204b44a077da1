"""Speaks a recorded front-end's part again, and compares what the back-end answers."""

import asyncio
import os
import socket
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable
from contextlib import suppress

from vhostd.errors import FrontendError, GuestError, SetupError
from vhostd.trace.cutting import Cut
from vhostd.trace.decoding import ASKING, DIALECTS, Decoder
from vhostd.trace.entries import Entry, Line, Message, Rings, Side
from vhostd.trace.guest import Guest
from vhostd.trace.passed import describe
from vhostd.trace.session import LINES
from vhostd.trace.stand_ins import StandIns
from vhostd.trace.text import difference, says
from vhostd.trace.voice import Voice
from vhostd.vhost_user.messages import (
    GET_FEATURES,
    GET_PROTOCOL_FEATURES,
    SET_FEATURES,
    SET_PROTOCOL_FEATURES,
    SET_VRING_KICK,
    VringFd,
)
from vhostd.wire.fds import Fd, close_all
from vhostd.wire.rows import U64

PATIENCE = 10.0  # seconds: for a message to be read, for its reply, and for a request to be given back
POLL = 0.001  # seconds
ACCEPTED = {  # which request accepts what another one's reply offers
    GET_FEATURES.request: SET_FEATURES.request,
    GET_PROTOCOL_FEATURES.request: SET_PROTOCOL_FEATURES.request,
}


class Replay:
    """One connection of a recording, spoken to a back-end. `tell` hears of each difference.

    Each recorded fd gets a new one of its kind. With `memory`, the guest's memory gets what the recording has
    of it, and rings are kicked when they were.
    """

    def __init__(
        self,
        sock: socket.socket,
        answers: Iterable[Entry],
        tell: Callable[[str], None],
        *,
        device: str | None,
        memory: bool,
    ) -> None:
        """`answers` are the entries of the connection, for what the back-end will ask."""
        self.sent = self.same = self.differing = 0
        self._voice = Voice(sock, DIALECTS[Line.MAIN])
        self._tell = tell
        self._decoder = Decoder(device)
        self._fds = StandIns()
        self._guest = Guest() if memory else None
        self._kicks: dict[int, Fd] = {}
        self._offered_chains: Counter[int] = Counter()  # by the ring, since its start
        self._missing: dict[int, int] = {}  # features that were offered, by the request that accepts them
        self._answers = _Answers(answers, self._fds)
        self._channels: list[tuple[Voice, asyncio.Task[None]]] = []

    async def run(self, entries: Iterable[Entry]) -> None:
        """Speaks all; ends early if the back-end closes the connection, or does not answer."""
        try:
            for entry in entries:
                if isinstance(entry, Rings) and not await self._put(entry):
                    return
                if isinstance(entry, Message) and entry.line is Line.MAIN and not await self._take(entry):
                    return
        finally:
            await self._close()

    async def _take(self, message: Message) -> bool:
        """Says or expects a recorded message; False if there is no point in going on."""
        if message.sender is not ASKING[Line.MAIN]:
            return await self._expect(message)
        if len(message.payload) < message.size:
            raise SetupError(f"the recording has only a part of a message of {message.size} bytes")
        message = self._accepting(message)
        fds = [self._between(message)] if message.request in LINES else list(map(self._fds.of, message.fds))
        self._hear(message, fds)
        try:
            async with asyncio.timeout(PATIENCE):
                await self._voice.say(_cut(message), fds)
        except TimeoutError:
            self._differ(f"the back-end has not read {self._named(message)} for {PATIENCE:.0f} s")
            return False
        except OSError:
            self._differ(f"the back-end has closed the connection before {self._named(message)}")
            return False
        self.sent += 1
        return True

    async def _expect(self, recorded: Message) -> bool:
        """Waits for the reply that is like a recorded one."""
        while True:
            try:
                async with asyncio.timeout(PATIENCE):
                    heard = await self._voice.hear()
            except TimeoutError:
                self._differ(f"no reply to {self._named(recorded)} came within {PATIENCE:.0f} s")
                return False
            if heard is None:
                self._differ(f"the back-end has closed the connection instead of {self._named(recorded)}")
                return False
            if self._compare(recorded, *heard):
                return True

    def _compare(self, recorded: Message, heard: Cut, fds: list[Fd]) -> bool:
        """Whether it is the reply to the recorded message's request; tells what is different."""
        update = {"request": heard.request, "flags": heard.flags, "payload": heard.payload}
        update |= {"size": heard.size, "fds": tuple(map(describe, fds))}
        seen = recorded.model_copy(update=update)
        self._decoder.decode(seen)
        if heard.request != recorded.request:
            close_all(fds)
            self._differ(f"{seen.name} {says(seen)}, which was not recorded")
            return False
        if heard.request in ACCEPTED and len(heard.payload) == len(recorded.payload) == U64.SIZE:
            before, now = U64.unpack(recorded.payload).value, U64.unpack(heard.payload).value
            self._missing[ACCEPTED[heard.request]] = before & ~now
        for passed, fd in zip(recorded.fds, fds, strict=False):
            self._fds.learn(passed, Fd(fd.take()))
        close_all(fds)
        self._decoder.decode(recorded)
        if _judged(seen) == _judged(recorded):
            self.same += 1
        else:
            self._differ(difference(seen, recorded))
        return True

    def _accepting(self, message: Message) -> Message:
        """The message; one that accepts features, without those that only the recorded back-end offered.

        QEMU accepts more than was offered; that is said again as it was.
        """
        missing = self._missing.get(message.request)
        if missing is None or len(message.payload) != U64.SIZE:
            return message
        value = U64.unpack(message.payload).value & ~missing
        taken = message.model_copy(update={"payload": U64(value).pack()})
        if taken.payload != message.payload:
            self._differ(difference(self._decoder.decode(taken), self._decoder.decode(message)))
        return taken

    def _differ(self, line: str) -> None:
        self.differing += 1
        self._tell(line)

    def _named(self, message: Message) -> str:
        return self._decoder.decode(message).name

    def _between(self, message: Message) -> Fd:
        """The back-end's end of a socket of ours, where we answer as the recorded front-end did."""
        ours, theirs = socket.socketpair()
        line = LINES[message.request]
        voice = Voice(ours, DIALECTS[line])
        self._channels.append((voice, asyncio.create_task(self._answers.serve(voice, line))))
        return Fd(theirs.detach())

    def _hear(self, message: Message, fds: list[Fd]) -> None:
        """Follows the rings, to know when the device has given back what was given back by then."""
        if message.request == SET_VRING_KICK.request and fds:
            index = VringFd.unpack(message.payload[: VringFd.SIZE]).index
            if old := self._kicks.pop(index, None):
                old.close()
            self._kicks[index] = Fd(os.dup(fds[0].fileno()))
        if self._guest and self._guest.knows(message.request):
            with suppress(FrontendError, GuestError):
                self._guest.hear(message.request, message.payload, fds)
                if message.request == SET_VRING_KICK.request:
                    self._guest.rings[VringFd.unpack(message.payload[: VringFd.SIZE]).index].start()

    async def _put(self, rings: Rings) -> bool:
        """Has the memory hold what it held, and kicks the ring; False if the device has stopped working."""
        if self._guest is None:
            return True
        try:
            if not await self._until_done(rings):
                return False
            for piece in rings.memory:
                self._guest.memory.write(piece.addr, piece.data)
            if ring := self._guest.rings.get(rings.ring):
                ring.news()
        except (FrontendError, GuestError) as error:
            self._differ(f"ring {rings.ring}: {error}")
        before = 0 if rings.event == "start" else self._offered_chains[rings.ring]
        self._offered_chains[rings.ring] = before + rings.chains
        if rings.event in ("kick", "call") and rings.ring in self._kicks:
            os.eventfd_write(self._kicks[rings.ring].fileno(), 1)
        return True

    async def _until_done(self, rings: Rings) -> bool:
        """Waits until the device has given back as much as in the recording, of what it has got so far."""
        ring = self._guest.rings.get(rings.ring) if self._guest else None
        end = asyncio.get_running_loop().time() + PATIENCE
        due = min(rings.done, self._offered_chains[rings.ring])
        while ring and ring.count_done() < due:
            if asyncio.get_running_loop().time() > end:
                self._differ(f"ring {rings.ring}: {ring.done} requests are done, {due} were")
                return False
            await asyncio.sleep(POLL)
        return True

    async def _close(self) -> None:
        for voice, task in self._channels:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            voice.close()
        self._voice.close()
        close_all(self._kicks.values())
        self._fds.close()
        if self._guest:
            self._guest.close()


class _Answers:
    """What the recorded front-end replied on the sockets that it had passed, by line and request.

    What is asked more often than it was gets the last reply again.
    """

    def __init__(self, entries: Iterable[Entry], fds: StandIns) -> None:
        self._fds = fds
        self._recorded: defaultdict[tuple[Line, int], deque[Message]] = defaultdict(deque)
        for entry in entries:
            if isinstance(entry, Message) and entry.line is not Line.MAIN and entry.sender is Side.FRONT_END:
                self._recorded[entry.line, entry.request].append(entry)

    async def serve(self, voice: Voice, line: Line) -> None:
        """Answers until the back-end goes."""
        with suppress(OSError):
            while heard := await voice.hear():
                message, fds = heard
                close_all(fds)
                replies = self._recorded[line, message.request]
                if replies:
                    reply = replies[0] if len(replies) == 1 else replies.popleft()
                    await voice.say(_cut(reply), [self._fds.of(passed) for passed in reply.fds])


def _judged(message: Message) -> tuple[object, ...]:
    """What must be as it was: of an fd that there is one of its kind."""
    return message.flags, message.size, message.payload, [fd.kind for fd in message.fds]


def _cut(message: Message) -> Cut:
    cut = Cut(message.request, message.flags, message.size)
    cut.payload = message.payload
    return cut
