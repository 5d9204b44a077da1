# cython: language_level=3, embedsignature=True, auto_pickle=False, autotestdict=False
"""SplitRing: the device half of a split virtqueue (virtio 1.3, 2.7).

Layer 3. The ring lies in memory that the driver may change at any time, so all state that decides anything is
kept here; what is read is read once, checked, and then used.

Ordering. Three pairs of accesses carry all of it; virtio 1.3, 2.7.13 and 2.7.14, is the driver's half.

1.  The driver writes descriptors and the avail element, then the avail index. We load the index with acquire
    before we load either, so what an index announces is complete when we read it.
2.  We write buffers and the used element, then the used index with release; a driver that sees the index sees
    the rest. System calls that wrote buffers have returned by then, and a thread that made them has handed
    over its result through a lock.
3.  Suppression: each side stores, and then loads what the other stores. The driver publishes an avail index
    and looks whether we want a kick; `arm` asks for one and looks at the avail index once more. We publish a
    used index, and `must_call` looks whether the driver wants an interrupt; the driver asks for one and looks
    at the used index once more. A store may be delayed past a later load, even on x86: both sides would then
    read old values, and sleep. With a full fence between the two, on both sides, at least one sees the
    other's store.

What is in flight is kept in the inflight area as well, if there is one; inflight.pyx argues the order of that.

Seams. A dirty log marks the used ring where `push` and `arm` write. A packed ring is another class with these
methods.
"""

from libc.stdint cimport UINT16_MAX, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free

from vhostd.ring.chain cimport MOST_PIECES, Chain, InFlight
from vhostd.ring.inflight cimport InflightQueue
from vhostd.ring.memory cimport GuestMemory, Window
from vhostd.ring.shortcut cimport DONE, LEFT, Shortcut

from vhostd.errors import BadDescriptor, BadRing, RefusedRequest


cdef int check_window(str name, Window window, uint64_t length, unsigned alignment) except -1:
    if window.size < length:
        raise RefusedRequest(f"{name}: {window.size} bytes, {length} needed")
    if <uintptr_t> window.data % alignment:
        raise RefusedRequest(f"{name}: not aligned to {alignment} bytes")
    return 0


cdef class SplitRing:
    """The device half of one split virtqueue, from its start to its stop.

    `size` is the number of descriptors. `base` is the avail index of the next chain to pop: what
    GET_VRING_BASE answers. `unfinished` counts the chains that whoever served the ring before popped and did not
    push, which are popped again before any other.
    """

    def __cinit__(
        self,
        size,
        Window desc not None,
        Window avail not None,
        Window used not None,
        GuestMemory memory not None,
        *,
        uint64_t features,
        base,
        InflightQueue inflight=None,
    ):
        """Starts at avail index `base` and at the used index found in guest memory.

        Of the negotiated `features`, bits 28 (INDIRECT_DESC) and 29 (EVENT_IDX) matter here. The windows are
        of `memory`, which resolves the addresses in descriptors. If `inflight` was in use before, it says what is
        unfinished and thereby where the ring goes on: `base` does not count then.

        Raises:
            RefusedRequest: `size` is not a power of two up to 32768, `base` is above 65535, or a window is
                shorter than `footprint` says or not aligned to 16, 2 and 4 bytes; or `inflight` is too small,
                or not of this ring.
            MemoryLost: a page of the inflight area vanished.
        """
        if not 0 < size <= MOST_DESCRIPTORS or size & (size - 1):
            raise RefusedRequest(f"queue size {size}: not a power of two up to {MOST_DESCRIPTORS}")
        if not 0 <= base <= UINT16_MAX:
            raise RefusedRequest(f"avail index {base}: above {UINT16_MAX}")
        self.size = size
        self._attach(memory, desc, avail, used)
        self.taken = <unsigned char *> calloc(self.size, 1)
        if self.taken is NULL:
            raise MemoryError
        self.out = InFlight()
        self.indirect = features >> INDIRECT_DESC & 1
        self.event_idx = features >> EVENT_IDX & 1
        self.patience = 1
        self.base = self.published = base
        self.used_index = load_u16(used.data + INDEX)
        if inflight is not None:
            self._resume(inflight)

    def __dealloc__(self):
        free(self.taken)

    @staticmethod
    def footprint(uint64_t size):
        """Bytes of the descriptor table, the avail ring and the used ring (virtio 1.3, 2.7)."""
        return DESC_SIZE * size, ELEMENTS + 2 * size + 2, ELEMENTS + USED_SIZE * size + 2

    def remap(
        self,
        GuestMemory memory not None,
        Window desc not None,
        Window avail not None,
        Window used not None,
    ):
        """Goes on in a new memory map, at the same indices; chains in flight keep the map they came from.

        Raises:
            RefusedRequest: as at the start; the ring then stays where it was.
        """
        self._attach(memory, desc, avail, used)
        self.published = self.base  # what the ring announced where it was before is to be looked at anew

    cdef int _attach(self, GuestMemory memory, Window desc, Window avail, Window used) except -1:
        lengths = self.footprint(self.size)
        check_window("descriptor table", desc, lengths[0], 16)
        check_window("avail ring", avail, lengths[1], 2)
        check_window("used ring", used, lengths[2], 4)
        for window in (desc, avail, used):
            if window.region not in memory.regions:
                raise ValueError(f"{window.region!r} does not belong to the ring's memory")
        self.memory, self.desc, self.avail, self.used = memory, desc, avail, used
        return 0

    # --- Chains -----------------------------------------------------------------------------------------

    cpdef Chain pop(self):
        """Takes the next chain that the driver made available; None if there is none now, or the ring `is_full`.

        Every address, index and length of the chain has been checked when it is returned; what is outside guest
        memory it knows itself.

        Raises:
            BadRing: the avail index or a head cannot be right.
            BadDescriptor: the chain cannot be followed.
            MemoryLost: a page of guest memory, or of the inflight area, vanished.
            In any case the ring is as it was before.
        """
        if self.out.pieces >= MOST_PIECES:
            return None
        if self.base == self.published:
            if self.unfinished:
                return self._pop_unfinished()
            if not self._look():
                return None
        cdef uint16_t head = load_u16(self.avail.data + ELEMENTS + 2 * (self.base & (self.size - 1)))
        if head >= self.size:
            raise self.memory.blame(
                BadRing, f"head {head} of {self.size} descriptors (avail index {self.base})"
            )
        if self.taken[head]:
            raise self.memory.blame(BadRing, f"head {head} is in flight already (avail index {self.base})")
        cdef Chain chain = self._follow(head)
        if self.inflight is not None:
            self.inflight.take(head)
        self._take(chain)
        self.base += 1
        return chain

    @property
    def is_empty(self):
        """Whether there is no chain to pop.

        Raises:
            BadRing: the avail index cannot be right.
            MemoryLost: a page of guest memory vanished.
        """
        return self.base == self.published and not self.unfinished and not self._look()

    cdef int _resume(self, InflightQueue inflight) except -1:
        """Finds out what was not finished before this ring started, from then on keeps record of it."""
        cdef list heads = inflight.resume(self.size, self.used_index)
        self.inflight = inflight
        if heads is not None:
            self.again = heads[::-1]
            self.unfinished = len(heads)
            # Whatever was popped has been pushed or is unfinished: the front-end need not know of the latter.
            self.base = self.published = <uint16_t> (self.used_index + self.unfinished)
        return 0

    cdef Chain _pop_unfinished(self):
        """Takes the oldest unfinished chain; the inflight area has it already."""
        cdef Chain chain = self._follow(self.again[-1])
        self.again.pop()
        self.unfinished -= 1
        self._take(chain)
        return chain

    cdef inline Chain _follow(self, uint16_t head):
        """The chain of the descriptors from `head` on."""
        cdef Chain chain = Chain.__new__(Chain)
        chain.head = head
        chain.memory = self.memory
        self._walk(chain, self.desc.data, self.size, head, False)
        self.memory.expect_whole()
        return chain

    cdef inline void _take(self, Chain chain) noexcept:
        self.out.add(chain)
        self.taken[chain.head] = 1

    cdef bint _look(self) except -1:
        """Loads the driver's avail index; True if it announces chains."""
        cdef uint16_t index = load_acquire_u16(self.avail.data + INDEX)
        if <uint16_t> (index - self.base) > self.size:
            raise self.memory.blame(
                BadRing, f"avail index went from {self.base} to {index}, past the queue size {self.size}"
            )
        self.memory.expect_whole()
        self.published = index
        return index != self.base

    cdef int _walk(
        self, Chain chain, unsigned char *table, uint32_t entries, uint32_t at, bint nested
    ) except -1:
        """Adds the buffers of the descriptors from `at` on; the last may refer to an indirect table."""
        cdef uint32_t walked
        cdef descriptor found
        for walked in range(entries):
            if at >= entries:
                raise self.memory.blame(
                    BadDescriptor, f"chain {chain.head}: next is {at}, of {entries} descriptors"
                )
            found = load_descriptor(table + DESC_SIZE * <size_t> at)
            if found.flags & DESC_F_INDIRECT:
                if nested:
                    raise self.memory.blame(
                        BadDescriptor, f"chain {chain.head}: an indirect table in another"
                    )
                return self._walk_indirect(chain, &found)
            chain.add(found.addr, found.len, found.flags & DESC_F_WRITE)
            if not found.flags & DESC_F_NEXT:
                return 0
            at = found.next
        raise self.memory.blame(
            BadDescriptor, f"chain {chain.head}: a loop, or more than {entries} descriptors"
        )

    cdef int _walk_indirect(self, Chain chain, descriptor *where) except -1:
        """Adds the buffers of an indirect table (virtio 1.3, 2.7.5.3).

        The specification forbids drivers a chain longer than the queue. Windows' and Linux' make some all the
        same, which every other device takes.
        """
        cdef uint64_t room = 0
        cdef uint32_t most = max(self.size, <uint32_t> MOST_INDIRECT)
        cdef unsigned char *table = NULL
        cdef bytes copy
        cdef str fault = None
        if not self.indirect:
            fault = "INDIRECT was not negotiated"
        elif where.flags & DESC_F_NEXT:
            fault = "INDIRECT together with NEXT"
        elif where.len == 0 or where.len % DESC_SIZE:
            fault = "not a whole number of descriptors"
        elif where.len // DESC_SIZE > most:
            fault = f"more than {most} descriptors"
        else:
            table = self.memory.locate(where.addr, &room)
            if table is NULL or room < where.len:  # it may go on in the next region
                try:
                    copy = self.memory.read(where.addr, where.len)
                    table = copy
                except BadDescriptor:
                    fault = "not in guest memory"
        if fault is not None:
            raise self.memory.blame(
                BadDescriptor,
                f"chain {chain.head}: indirect table of {where.len} bytes at {where.addr:#x}: {fault}",
            )
        return self._walk(chain, table, where.len // DESC_SIZE, 0, True)

    def push(self, Chain chain not None):
        """Gives a chain back to the driver, which then knows of `chain.written` bytes (virtio 1.3, 2.7.8).

        Returns whether it is time to ask `must_call`: after one chain, after the next two, the next three,
        and so on up to 32, and anew after `arm`. The fewer requests a driver has under way, the sooner it has
        to be told, or it and the device wait for each other in turns.

        Raises:
            ValueError: the chain is not in flight in this ring.
            MemoryLost: a page of guest memory, or of the inflight area, vanished; the chain counts as given
                back.
        """
        return self._push(chain)

    cdef bint _push(self, Chain chain) except -1:
        if chain.among is not self.out:
            raise ValueError(f"{chain!r} is not in flight in this ring")
        cdef uint32_t slot = self.used_index & (self.size - 1)
        cdef unsigned char *element = self.used.data + ELEMENTS + USED_SIZE * slot
        self.out.remove(chain)
        self.taken[chain.head] = 0
        store_u32(element, chain.head)
        store_u32(element + 4, <uint32_t> chain.written)
        self.used_index += 1
        if self.inflight is None:
            store_release_u16(self.used.data + INDEX, self.used_index)
        else:
            self.inflight.announce(chain.head)
            store_release_u16(self.used.data + INDEX, self.used_index)
            self.inflight.release(chain.head, self.used_index)
        self.uncalled += self.uncalled <= UINT16_MAX  # beyond that, all that counts is that there were many
        self.memory.expect_whole()
        if self.uncalled < self.patience:
            return False
        self.patience = min(self.patience + 1, <uint32_t> MOST_PUSHES)
        return True

    # --- What the device has ----------------------------------------------------------------------------

    @property
    def in_flight(self):
        """How many chains the device has: popped, and neither given back nor forgotten."""
        return self.out.chains

    @property
    def effort(self):
        """What the event loop has done for this ring so far: 1 for each chain, and more for those that take longer.

        These have very many pieces, or a shortcut has copied much for them.
        """
        return self.out.effort

    @property
    def is_full(self):
        """Whether the device has chains of so much guest memory, in pieces, that it gets no more for now."""
        return self.out.pieces >= MOST_PIECES

    def when_empty(self, call):
        """Has `call` called once, in any thread, when no chain is in flight any more; None calls that off."""
        self.out.emptied = call
        self.out.tell()

    def when_eased(self, call):
        """The same when the device has few chains enough to get more, having been full."""
        self.out.eased = call
        self.out.tell()

    def give_up(self):
        """Says, for good, that the chains that are out will never be given back; they can be dropped."""
        self.out.given_up = True

    @property
    def given_up(self):
        """Whether they were given up."""
        return self.out.given_up

    def drop(self, Chain chain not None):
        """Takes note that work on a chain has ended, and tells neither the driver nor the inflight area.

        Raises:
            ValueError: the chain is not in flight in this ring.
        """
        if chain.among is not self.out:
            raise ValueError(f"{chain!r} is not in flight in this ring")
        self.out.remove(chain)

    # --- Serving ----------------------------------------------------------------------------------------

    def hurry(self):
        """Has `push` begin anew: the next chain is one to tell the driver of, as after `arm`."""
        self.patience = 1

    def serve(self, Shortcut shortcut not None, queue, uint32_t most):
        """Has a shortcut serve chains of a queue; returns the first that it leaves, or None.

        None says that there are no more chains now, or that they have taken `most` of `effort`. The queue is asked
        to `flush` whenever `push` would say that it is time, and at the end.

        Raises:
            BadRing, BadDescriptor, MemoryLost: as `pop`; and whatever the shortcut raises.
        """
        cdef Chain chain
        cdef int outcome
        cdef uint64_t end = self.out.effort + most
        try:
            while self.out.effort < end:
                chain = self.pop()
                if chain is None:
                    return None
                outcome = shortcut.serve(queue, chain)
                if outcome == LEFT:
                    return chain
                if outcome == DONE and self._push(chain):
                    queue.flush()
        finally:  # also for those before one that is broken
            shortcut.settle()
            if self.uncalled:
                queue.flush()

    # --- Event suppression (virtio 1.3, 2.7.7 and 2.7.10) ------------------------------------------------

    def arm(self):
        """Asks for a kick at the next chain; True if there is one already, for which no kick may come.

        An unfinished chain is one. It may be there although `pop` gives none, because the ring is full.

        Raises:
            MemoryLost: a page of guest memory vanished.
        """
        self.patience = 1
        if self.event_idx:
            store_u16(self.used.data + ELEMENTS + USED_SIZE * self.size, self.base)
        else:
            store_u16(self.used.data + FLAGS, 0)
        full_fence()
        cdef uint16_t index = load_u16(self.avail.data + INDEX)
        self.memory.expect_whole()
        return index != self.base or self.unfinished > 0

    def disarm(self):
        """Asks for no kicks, while the queue is being worked on anyway; some may come all the same."""
        # With EVENT_IDX the flags must stay 0, and the event index, once passed, asks for nothing more.
        if not self.event_idx:
            store_u16(self.used.data + FLAGS, USED_F_NO_NOTIFY)

    def must_call(self):
        """Does the driver want an interrupt for what was pushed since this was last asked?"""
        cdef uint32_t pushed = self.uncalled
        if not pushed:
            return False
        self.uncalled = 0
        full_fence()
        if not self.event_idx:
            return not load_u16(self.avail.data + FLAGS) & AVAIL_F_NO_INTERRUPT
        if pushed > UINT16_MAX:
            return True
        cdef uint16_t event = load_u16(self.avail.data + ELEMENTS + 2 * self.size)
        return passed(event, self.used_index, <uint16_t> (self.used_index - pushed))
