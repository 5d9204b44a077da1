"""The messages about the dirty log: which pages of guest memory we have written, for a live migration.

The front-end shares the log first. It switches logging on and off by the feature LOG_ALL, while rings run
(vhost-user, "Migration").
"""

from vhostd.errors import RefusedRequest
from vhostd.ring import DirtyLog, GuestMemory, Region
from vhostd.vhost_user.memory import Memory
from vhostd.vhost_user.messages import SET_LOG_BASE, SET_LOG_FD, Log
from vhostd.virtio.state import VirtioState
from vhostd.virtio.vocabulary import Feature
from vhostd.wire.calls import Call, Fds, answer_with_fds
from vhostd.wire.rows import U64, Empty


class Migration:
    """Has all rings log what they write, while the front-end wants it."""

    def __init__(self, state: VirtioState, memory: Memory) -> None:
        self._state = state
        self._memory = memory
        self._log: DirtyLog | None = None
        self.calls: tuple[Call, ...] = (
            answer_with_fds(SET_LOG_BASE, self.set_log_base),
            answer_with_fds(SET_LOG_FD, self.set_log_fd),
        )

    def set_log_base(self, place: Log, fds: Fds) -> U64:
        needed = self._memory.dirty_log_size
        if place.mmap_size < needed:
            raise RefusedRequest(f"a dirty log of {place.mmap_size} bytes, {needed} needed")
        region = Region(
            fds[0].fileno(), guest_addr=0, user_addr=0, size=place.mmap_size, offset=place.mmap_offset
        )
        self._log = DirtyLog(GuestMemory([region]), place.mmap_size)
        self.update()
        return U64(0)

    def set_log_fd(self, _: Empty, fds: Fds) -> None:
        """No effect: what changes in the log is looked at when a migration wants it."""

    def update(self) -> None:
        """Begins or ends to log, as the features say."""
        wanted = self._state.features >> Feature.LOG_ALL & 1
        self._state.log_writes(self._log if wanted else None)

    def close(self) -> None:
        """Unmaps the log. No ring may run."""
        self._log = None
        self._state.log_writes(None)
