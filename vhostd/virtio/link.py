"""What a device may say to the front-end that it serves."""

from collections.abc import Sequence

from vhostd.errors import UnknownRequest
from vhostd.wire.calls import Reply
from vhostd.wire.fds import Fd
from vhostd.wire.rows import P, R, Row


class Link:
    """A device's way to its front-end, which each transport has one of; this one leads nowhere."""

    def config_changed(self) -> None:
        """Has the driver told, soon, that the config space has changed."""

    async def ask(self, row: Row[P, R], payload: P, fds: Sequence[Fd] = ()) -> Reply[R]:
        """Sends the front-end a request of the transport's; its reply, whose fds are the caller's.

        A row without a reply of its own is acked, if the front-end does that. The `fds` stay the caller's.

        Raises:
            UnknownRequest: the transport has no such request, or the front-end did not agree to it.
            RefusedRequest: the front-end says no.
            ConnectionError: it has gone.
        """
        raise UnknownRequest(f"{row}: there is nobody to ask")
