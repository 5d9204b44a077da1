"""The back-end that is checked: a command that starts it, or the socket of one that runs."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from socket import socket as Socket
from types import TracebackType
from typing import Self

from vhostd.conformance.exchange import EXCHANGES, Exchange
from vhostd.conformance.reports import report_in
from vhostd.conformance.verdict import Failed
from vhostd.errors import FrontendError, RefusedRequest, SetupError
from vhostd.frontend import Backend, Frontend
from vhostd.frontend.connecting import connected
from vhostd.host.signals import signal_name
from vhostd.vhost_user.messages import GET_FEATURES, GET_PROTOCOL_FEATURES, ProtocolFeature
from vhostd.virtio.vocabulary import Feature
from vhostd.wire.rows import Bit, Empty

PATIENCE = 10.0  # seconds for what takes milliseconds, on a busy machine too
HINT = "note: "  # how Rust begins the last line of a panic, which says nothing of it
LEAVING = 0.5  # seconds in which a program mostly ends that serves one connection only
DYING = 0.5  # seconds in which the end of one that has closed its connections is noticed
UNREACHABLE = (ConnectionError, FileNotFoundError, FrontendError, SetupError, TimeoutError)


class Subject:
    """Started and reached from `async with` on. `kind` is the type of its device, as in vhost-user.json.

    SetupError if it cannot be started, or serves no front-end at all.
    """

    def __init__(
        self,
        *,
        command: str = "",
        socket: Path | None = None,
        kind: str = "",
        patience: float = PATIENCE,
        through: Callable[[Socket], Socket] = lambda connection: connection,
    ) -> None:
        """All connections go `through` this, which may put something between."""
        self.kind = kind
        self.patience = patience
        self.features = 0
        self.protocol_features = 0
        self.queue_num = 1
        self.is_one_shot = False  # it ends with its front-end
        self._renews_socket = False  # when its front-end has gone; the old socket serves nobody any more
        self._listens_since = 0
        self.program = Backend(command, patience=patience) if command else None
        self._socket = socket
        self._through = through

    async def __aenter__(self) -> Self:
        if self.program is not None:
            await self.program.__aenter__()
        try:
            await self._learn()
        except UNREACHABLE as error:
            await self.__aexit__(None, None, None)
            raise SetupError(self._unreachable(error)) from None
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.program is not None:
            await self.program.close()

    @property
    def exchange(self) -> Exchange | None:
        """A valid request for its device; None if none is known."""
        return EXCHANGES.get(self.kind)

    def offers(self, bit: Bit) -> bool:
        """Whether it offers this feature of the protocol."""
        return bool(self.protocol_features >> bit & 1)

    def has(self, bit: Bit) -> bool:
        """Whether it offers this feature of virtio."""
        return bool(self.features >> bit & 1)

    async def connect(self) -> Frontend:
        """A new connection, which the caller closes. One that has ended with its front-end starts again."""
        return Frontend(self._through(await self._open()), patience=self.patience)

    async def _open(self) -> Socket:
        if self.program is None:
            return await connected(self._socket or "", self.patience)
        if self.is_one_shot and self.program.status is not None:
            await self.program.restart()
        elif self._renews_socket:
            await self.program.listens_anew(self._listens_since)
        connection = await self.program.open()
        self._listens_since = self.program.listens_since
        return connection

    async def knock(self) -> Frontend | None:
        """A connection beside another one, which the caller closes; None if there can be none."""
        paths = [self._socket] if self.program is None else self.program.sockets()
        for path in paths:
            with suppress(*UNREACHABLE):
                return await Frontend.connect(path or "", patience=self.patience)
        return None

    async def settle(self) -> None:
        """Sees to it that the next check finds a back-end that serves; raises Failed if this one does not."""
        if self.is_one_shot:
            await self._expect_clean_end()
            return
        try:
            await self._greet()
        except UNREACHABLE as error:
            await self._has_left(DYING)  # its end says more than its silence
            reason = self._loss(error)
            if self.program is not None:
                await self.program.restart()
            raise Failed(reason) from None

    async def revive(self) -> None:
        """Starts the program again, after a check has ended it."""
        if self.program is not None:
            await self.program.restart()
        if self.is_one_shot:
            await self._greet()  # and ends with that

    def _unreachable(self, error: Exception) -> str:
        """Why nothing can be checked."""
        why = getattr(error, "strerror", None) or str(error) or "it does not answer"
        if self._socket is None:
            return f"it serves no front-end: {why}"
        if isinstance(error, BrokenPipeError | ConnectionResetError):
            why = "it closes the connection; has it a front-end already?"
        return f"{self._socket} serves no front-end: {why}"

    async def _expect_clean_end(self) -> None:
        if self.program is None:
            return
        try:
            status = await self.program.ended()
        except TimeoutError:
            with suppress(*UNREACHABLE):  # the next check says so
                await self.revive()
            raise Failed("it did not end when its front-end had gone, as it did before") from None
        if status < 0:
            raise Failed(f"the program was ended by {signal_name(-status)}: {self._last_words()}")
        if status and (report := report_in(self.program.output.splitlines())):
            raise Failed(f"the program ended with status {status}, and reports: {report.string.strip()}")

    def _loss(self, error: Exception) -> str:
        """Why it serves no more."""
        status = None if self.program is None else self.program.status
        if status is None:
            return f"afterwards it served no new front-end: {str(error) or 'no answer'}"
        what = f"was ended by {signal_name(-status)}" if status < 0 else f"ended with status {status}"
        return f"the program {what}: {self._last_words()}"

    def _last_words(self) -> str:
        said = "" if self.program is None else self.program.output
        lines = [line for line in said.splitlines() if not line.startswith(HINT)]
        return lines[-1] if lines else "it said nothing"

    async def _learn(self) -> None:
        frontend = await self.connect()
        try:
            self.features = (await frontend.call(GET_FEATURES, Empty())).value
            if self.has(Feature.PROTOCOL_FEATURES):
                self.protocol_features = (await frontend.call(GET_PROTOCOL_FEATURES, Empty())).value
                with suppress(RefusedRequest):
                    await frontend.negotiate(self.features, 1 << ProtocolFeature.MQ, resume=True)
                    self.queue_num = await frontend.queue_num()
        finally:
            frontend.close()
        if self.program is not None:
            await self._learn_what_follows(self.program)

    async def _learn_what_follows(self, program: Backend) -> None:
        """Finds out what it does when its front-end has gone: it ends, makes its socket anew, or neither.

        If it does neither, it serves another front-end. One that does not is only slow, and is waited for.
        """
        since = self._listens_since
        with suppress(TimeoutError):
            async with asyncio.timeout(LEAVING):
                await program.listens_anew(since)
        if program.status is None and program.listens_since <= since:
            try:
                await self._greet()
            except UNREACHABLE:
                with suppress(TimeoutError):
                    await program.listens_anew(since)
        self.is_one_shot = program.status is not None
        self._renews_socket = not self.is_one_shot and program.listens_since > since

    async def _has_left(self, seconds: float) -> bool:
        """Whether the program ends within so many seconds."""
        if self.program is None:
            return False
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.program.ended()
        return self.program.status is not None

    async def _greet(self) -> None:
        """Has it serve a new front-end."""
        frontend = await self.connect()
        try:
            await frontend.call(GET_FEATURES, Empty())
        finally:
            frontend.close()
