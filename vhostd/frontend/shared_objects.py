"""The objects that back-ends share with each other through their front-end, by UUID."""

import os
from collections.abc import Sequence
from uuid import UUID

from vhostd.errors import RefusedRequest
from vhostd.vhost_user.messages import (
    SHARED_OBJECT_ADD,
    SHARED_OBJECT_LOOKUP,
    SHARED_OBJECT_REMOVE,
    SharedObject,
)
from vhostd.wire.calls import Call, Reply, answer
from vhostd.wire.fds import Fd
from vhostd.wire.rows import U64


class SharedObjects:
    """A table of objects: what a back-end has said that it has, and fds of others for it to look up.

    `calls` are for `BackendRequests`. The fds in `given` stay the caller's.
    """

    def __init__(self) -> None:
        self.added: set[UUID] = set()
        self.given: dict[UUID, Fd] = {}

    @property
    def calls(self) -> Sequence[Call]:
        """What the back-end may ask."""
        return [
            answer(SHARED_OBJECT_ADD, self._add),
            answer(SHARED_OBJECT_REMOVE, self._remove),
            answer(SHARED_OBJECT_LOOKUP, self._look_up),
        ]

    def _add(self, wanted: SharedObject) -> None:
        uuid = UUID(bytes=wanted.uuid)
        if uuid in self.added:
            raise RefusedRequest(f"{uuid} is there already")
        self.added.add(uuid)

    def _remove(self, wanted: SharedObject) -> None:
        uuid = UUID(bytes=wanted.uuid)
        if uuid not in self.added:
            raise RefusedRequest(f"{uuid} was never added")
        self.added.remove(uuid)

    def _look_up(self, wanted: SharedObject) -> Reply[U64]:
        fd = self.given.get(UUID(bytes=wanted.uuid))
        if fd is None:
            raise RefusedRequest("no such object")
        return Reply(U64(0), [Fd(os.dup(fd.fileno()))])
