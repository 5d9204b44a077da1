"""A device's requests to its front-end."""

from collections.abc import Sequence

from vhostd.errors import UnknownRequest
from vhostd.wire.calls import Reply
from vhostd.wire.fds import Fd
from vhostd.wire.rows import P, R, Row


class Link:
    """A device's requests to its front-end. Each transport has its own Link; this one has no front-end."""

    def config_changed(self) -> None:
        """Tells the driver, soon, that the config space has changed."""

    async def ask(self, row: Row[P, R], payload: P, fds: Sequence[Fd] = ()) -> Reply[R]:
        """Sends a request of the transport to the front-end; returns the reply, whose fds are the caller's.

        For a row without a reply of its own it waits for an ack, if the front-end sends acks. The `fds` stay
        the caller's.

        Raises:
            UnknownRequest: the transport has no such request, or the front-end did not agree to it.
            RefusedRequest: the front-end refuses.
            ConnectionError: the front-end has gone.
        """
        raise UnknownRequest(f"{row}: there is nobody to ask")
