# cython: language_level=3, embedsignature=True, auto_pickle=False, autotestdict=False
"""Ring: the device half of a virtqueue, whatever its format.

The ring lies in memory that the driver may change at any time, so all state that decides anything is kept here;
what is read is read once, checked, and then used.

What does not depend on the format is done here: which chains the device has, the record of them in the inflight
area, how often the driver is told of what was pushed, and the loop that serves chains without Python. A format is
a small class of its own, such as SplitRing; what it fills in is listed at `Ring`.
"""

from libc.stdint cimport SIZE_MAX, UINT16_MAX, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free

from vhostd.ring.arrivals cimport Absent
from vhostd.ring.chain cimport MOST_PIECES, Chain, InFlight
from vhostd.ring.gather cimport gather
from vhostd.ring.inflight cimport InflightQueue
from vhostd.ring.iotlb cimport DeviceIotlb, Extent, Miss
from vhostd.ring.memory cimport READS, GuestMemory, Window
from vhostd.ring.shortcut cimport DONE, LEFT, Shortcut
from vhostd.ring.write_log cimport WriteLog

from vhostd.errors import BadDescriptor, BadRing, GuestError, MemoryLost, RefusedRequest

cdef extern from "barriers.h" nogil:
    void full_fence()


cdef int check_window(str name, Window window, uint64_t length, unsigned alignment) except -1:
    if window.size < length:
        raise RefusedRequest(f"{name}: {window.size} bytes, {length} needed")
    if <uintptr_t> window.data % alignment:
        raise RefusedRequest(f"{name}: not aligned to {alignment} bytes")
    return 0


cdef class Ring:
    """The device half of one virtqueue, from its start to its stop; one of its formats, never this class itself.

    `size` is the number of descriptors. `base` is where the next chain is: what GET_VRING_BASE answers.
    `unfinished` counts the chains that whoever served the ring before popped and did not push, which are popped
    again before any other.

    A format says, for Python:

    - `check_size`, `check_base`: how long the ring may be, and where it may begin; `START`: where a new one does,
      and `STARTS`: what front-ends call that;
    - `footprint` and `AREAS`: the bytes of its three areas, and what these are called and aligned to;
    - `INFLIGHT`: the class of its inflight record; `HEAD`: what it calls the number that a chain comes back by;
    - `spell`: a base, for the log;

    and in Cython:

    - `has_next`: has the driver made a chain available? Once it has, that stays true until `take_next`.
    - `take_next`: that chain, checked, or None; `base` moves behind it, and by `go_back` in front of it again.
    - `find_again`: an unfinished chain, by its entry in the inflight record.
    - `write_used`: the used element of a chain, so many behind those that the driver sees. `publish_used`: the
      driver sees so many more, all at once.
    - `ask_for_kick`, `ask_for_no_kicks`, `wants_call`: event suppression. The fences between are made here.
    - `walk_table`: adds the buffers of an indirect table to a chain.

    For that it has `new_chain`, `expect_free` and `walk_indirect`, and tells `wrote` of all that it writes.
    """

    AREAS = ()
    HEAD = ""
    START = 0
    STARTS = (0,)
    INFLIGHT = InflightQueue

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
        """Starts at `base`, and at what the driver was told of last, which guest memory says.

        Of the negotiated `features`, bits 28 (INDIRECT_DESC), 29 (EVENT_IDX) and 35 (IN_ORDER) matter here. The
        windows are of `memory`, which resolves the addresses in descriptors. If `inflight` was in use before, it
        says what is unfinished and thereby where the ring goes on: `base` does not count then.

        Raises:
            RefusedRequest: there is no ring of this `size`, or no such `base`, or a window is shorter than
                `footprint` says or not aligned; or `inflight` is too small, or not of this ring.
            MemoryLost: a page of the inflight area vanished.
        """
        self.check_size(size)
        self.size = size
        self.attach(memory, desc, avail, used)
        self.taken = <unsigned char *> calloc(self.size, 1)
        if self.taken is NULL:
            raise MemoryError
        self.out = InFlight()
        self.indirect = features >> INDIRECT_DESC & 1
        self.event_idx = features >> EVENT_IDX & 1
        if features >> IN_ORDER & 1:
            self.held = {}
            self.out.gone = set()
        self.patience = 1

    def __dealloc__(self):
        free(self.taken)

    @staticmethod
    def check_size(size):
        """Raises RefusedRequest unless a ring of this format may have so many descriptors."""
        raise NotImplementedError

    @staticmethod
    def check_base(base):
        """Raises RefusedRequest unless a ring of this format, of some size, may begin there."""
        raise NotImplementedError

    @staticmethod
    def spell(uint32_t base):
        """A base as a person reads it."""
        raise NotImplementedError

    @staticmethod
    def footprint(uint64_t size):
        """Bytes of the three areas of a ring with so many descriptors."""
        raise NotImplementedError

    def remap(
        self,
        GuestMemory memory not None,
        Window desc not None,
        Window avail not None,
        Window used not None,
    ):
        """Goes on in a new memory map, at the same place; chains in flight keep the map they came from.

        Raises:
            RefusedRequest: as at the start; the ring then stays where it was.
        """
        self.attach(memory, desc, avail, used)
        self.awaits = self.lost = False
        self.absent = None
        self.update_held()

    cdef int attach(self, GuestMemory memory, Window desc, Window avail, Window used) except -1:
        """Lies in these windows from now on; what was seen in others is to be looked at anew."""
        for window, length, (name, alignment) in zip((desc, avail, used), self.footprint(self.size), self.AREAS):
            check_window(name, window, length, alignment)
            if (<Window> window).region not in memory.regions:
                raise ValueError(f"{(<Window> window).region!r} does not belong to the ring's memory")
        self.memory, self.desc, self.avail, self.used = memory, desc, avail, used
        return 0

    def gather(self, ranges, size_t most=SIZE_MAX):
        """As `Chain.gather`, in the ring's present memory: for ranges that no chain has named, but a saved state."""
        return gather(self.memory, ranges, most)

    # --- Chains -----------------------------------------------------------------------------------------

    def pop(self):
        """Takes the next chain that the driver made available; None if there is none now, or the ring `is_held`.

        Every address, index and length of the chain has been checked when it is returned; what is outside guest
        memory it knows itself.

        Raises:
            BadRing: what the ring says is available cannot be right.
            BadDescriptor: the chain cannot be followed.
            MemoryLost: a page of guest memory, or of the inflight area, vanished.
            In any case the ring is as it was before.
        """
        return self.take()

    cdef Chain take(self):
        cdef Chain chain
        if self.out.pieces >= MOST_PIECES or self.out.held:
            return None
        chain = self.find_reachable() if self.memory.may_miss else self.find_next()
        if chain is None:
            return None
        if self.unfinished:
            chain.entry = self.again.pop()
            chain.unfinished = True
            self.unfinished -= 1
        elif self.inflight is not None:
            self.record(chain)
        self.out.add(chain)
        self.taken[chain.head] = 1
        chain.number = self.popped
        self.popped += 1
        if self.when_popped is not None:
            self.when_popped(chain)
        return chain

    cdef Chain find_next(self):
        return self.find_again(self.again[-1]) if self.unfinished else self.take_next()

    cdef Chain find_reachable(self):
        """As `find_next`; None, and the ring is held, if a part of the chain is not translated, or not there, yet."""
        cdef Chain chain = None
        self.memory.begin_look()
        try:
            chain = self.find_next()
        except GuestError:
            if not self.memory.has_missed():  # else it may be for the lack of what is missing
                raise
        if not self.memory.has_missed():
            self.has_refused = False
            return chain
        if chain is not None and not self.unfinished:
            self.go_back(chain)
        self.hold_for_misses()
        return None

    cdef int hold_for_misses(self) except -1:
        """Waits for the last of each kind: front-ends answer in turn, and pages are fetched in turn."""
        cdef DeviceIotlb iotlb = self.memory.iotlb
        if iotlb is not None and iotlb.missed:
            self.expect_not_refused()
            self.miss = iotlb.misses[iotlb.missed - 1]
            self.awaits = True
        if self.memory.arrivals is not None and self.memory.arrivals.missed:
            self.absent = self.memory.arrivals.last()
        self.update_held()
        return self.memory.end_look()

    cdef int expect_not_refused(self) except -1:
        """Raises BadDescriptor if the chain needs what the front-end has refused to translate."""
        if self.has_refused and self.memory.iotlb.has_missed(self.refused):
            raise BadDescriptor(
                f"no access {self.refused.access} to I/O virtual address {self.refused.iova:#x} (at {self.base})"
            )
        self.has_refused = False
        return 0

    cdef void update_held(self) noexcept:
        self.out.held = self.awaits or self.lost or self.absent is not None
        self.out.tell()

    cdef int record(self, Chain chain) except -1:
        try:
            self.inflight.take(chain)
        except MemoryLost:
            self.go_back(chain)
            raise
        return 0

    @property
    def is_empty(self):
        """Whether there is no chain to pop. If there is one, it stays there, unless the ring `is_held`.

        Of a ring that is held for translations, or pages, nobody knows; it counts as one that has some.

        Raises:
            BadRing: what the ring says is available cannot be right.
            MemoryLost: a page of guest memory vanished.
        """
        return not self.out.held and not self.unfinished and not self.has_next()

    def push(self, Chain chain not None):
        """Gives a chain back to the driver, which then knows of `chain.written` bytes (virtio 1.3, 2.7.8).

        Returns whether it is time to ask `must_call`: after one chain, after the next two, the next three,
        and so on up to 32, and anew after `arm`. The fewer requests a driver has under way, the sooner it has
        to be told, or it and the device wait for each other in turns.

        Under IN_ORDER the driver gets it when all that were popped before it have been pushed (virtio 1.3, 2.7.9
        and 2.8.5). Until then it stays in flight. For those that nobody refers to any more it does not wait.

        Raises:
            ValueError: the chain is not in flight in this ring, or was pushed.
            MemoryLost: a page of guest memory, or of the inflight area, vanished; the chain counts as given
                back.
        """
        return self.give_back(chain)

    cdef bint give_back(self, Chain chain) except -1:
        self.expect_ours(chain)
        if self.held is not None:
            return self.publish_all(self.in_order([chain]))
        self.out.remove(chain)
        self.taken[chain.head] = 0
        self.write_used(chain, 0)
        if self.inflight is None:
            self.publish_used(1)
        else:
            self.inflight.announce(chain)
            self.publish_used(1)
            self.inflight.release(chain)
            self.inflight.end_batch(1)
        if self.when_pushed is not None:
            self.when_pushed(chain)
        return self.pace(1)

    def push_all(self, chains):
        """As `push`, for several chains, which the driver sees all at once, in this order.

        Raises:
            ValueError: one is not in flight in this ring, or is there twice; none was pushed.
            MemoryLost: as `push`.
        """
        cdef list batch = list(chains)
        if len(set(batch)) < len(batch):
            raise ValueError("a chain is there twice")
        return self.give_back_all(batch)

    cdef bint give_back_all(self, list batch) except -1:
        """As `push_all`, for native code, which has each chain once."""
        cdef Chain chain
        for chain in batch:
            self.expect_ours(chain)
        return self.publish_all(batch if self.held is None else self.in_order(batch))

    cdef list in_order(self, list batch):
        """Keeps these chains, which were pushed, until their turn; returns those whose turn it is."""
        cdef Chain chain
        cdef list due = []
        for chain in batch:
            self.held[chain.number] = chain
        while self.due in self.held or self.due in self.out.gone:
            if self.due in self.held:
                due.append(self.held.pop(self.due))
            else:
                self.out.gone.discard(self.due)
            self.due += 1
        self.out.waiting = len(self.held)
        return due

    cdef bint publish_all(self, list batch) except -1:
        """Has the driver see these chains at once."""
        cdef Chain chain
        cdef uint32_t count = 0
        if not batch:
            return False
        for chain in batch:
            self.out.remove(chain)
            self.taken[chain.head] = 0
            self.write_used(chain, count)
            count += 1
            if self.inflight is not None:
                self.inflight.announce(chain)
        self.publish_used(count)
        if self.inflight is not None:
            for chain in batch:
                self.inflight.release(chain)
            self.inflight.end_batch(count)
        if self.when_pushed is not None:
            for chain in batch:
                self.when_pushed(chain)
        return self.pace(count)

    def put_back(self, Chain chain not None):
        """Undoes the last `pop`: the chain is the next to be popped again. It must not be used any more.

        Several are put back the newest first. What was written to the chain stays, and is never told the driver.

        Raises:
            ValueError: the chain is not in flight in this ring, or another was popped after it.
        """
        self.expect_ours(chain)
        if chain.number + 1 != self.popped:
            raise ValueError(f"{chain!r} is not the chain that was popped last")
        self.popped -= 1
        self.out.remove(chain)
        self.taken[chain.head] = 0
        if self.when_put_back is not None:
            self.when_put_back(chain)
        if chain.unfinished:
            self.again.append(chain.entry)
            self.unfinished += 1
            return
        self.go_back(chain)
        if self.inflight is not None:
            self.inflight.undo(chain)

    def drop(self, Chain chain not None):
        """Takes note that work on a chain has ended, and tells neither the driver nor the inflight area.

        Raises:
            ValueError: the chain is not in flight in this ring.
        """
        self.expect_ours(chain)
        self.out.remove(chain)

    cdef int expect_ours(self, Chain chain) except -1:
        if chain is None or chain.among is not self.out or (self.held is not None and chain.number in self.held):
            raise ValueError(f"{chain!r} is not in flight in this ring")
        return 0

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
    def is_held(self):
        """Whether it gives no chain for now, whatever the driver has made available.

        The device has chains of very much guest memory, in pieces; or an address is not translated, or its page is
        not there, yet.
        """
        return self.out.held or self.out.pieces >= MOST_PIECES

    def when_empty(self, call):
        """Has `call` called once, in any thread, when no chain is in flight any more; None calls that off.

        Under IN_ORDER some may be left that were pushed, and had to wait: `push_all` of none gives them back.
        """
        self.out.emptied = call
        self.out.tell()

    def when_eased(self, call):
        """The same when the ring, having been held, can give chains again."""
        self.out.eased = call
        if call is None:
            self.wanted = None
        self.tell_wanted()
        self.out.tell()

    def give_up(self):
        """Says, for good, that the chains that are out will never be given back; they can be dropped."""
        cdef Chain chain
        self.out.given_up = True
        if self.held is not None:
            self.out.waiting = 0
            for chain in self.held.values():
                self.out.remove(chain)
            self.held.clear()

    @property
    def given_up(self):
        """Whether they were given up."""
        return self.out.given_up

    def watch(self, popped, pushed, put_back):
        """Has these called with each chain that was popped, pushed or put back, for whoever counts them.

        They must not refer to the ring, which is no matter of the garbage collector's.
        """
        self.when_popped, self.when_pushed, self.when_put_back = popped, pushed, put_back

    def log_writes(self, WriteLog log):
        """Has a log told of all that is written from now on, to chains in flight too; None has nobody told."""
        self.out.log = log

    # --- I/O virtual addresses --------------------------------------------------------------------------

    def hold(self, wanted):
        """Looks at nothing that the driver writes, and gives no chain, until `remap`. Chains can be pushed.

        `wanted` is called as soon as somebody waits for chains.
        """
        self.lost, self.wanted = True, wanted
        self.update_held()
        self.tell_wanted()

    @property
    def awaited(self):
        """The miss that the ring is held for, `(iova, access)`: the last that it told of; or None."""
        return (self.miss.iova, self.miss.access) if self.awaits else None

    def answered(self, uint64_t iova, int access, *, bint refused):
        """The front-end has answered a miss. The ring looks again if it was held for that one.

        If the answer was no, and its next chain is still the one that needs that, the ring breaks then.
        """
        if self.awaits and refused:
            self.refused, self.has_refused = Miss(iova, access), True
        if self.awaits and self.miss.iova == iova and self.miss.access == access:
            self.awaits = False
            self.update_held()

    def arrived(self, Absent absent not None):
        """Pages have arrived. The ring looks again if it was held for these."""
        if self.absent == absent:
            self.absent = None
            self.update_held()

    cdef int tell_wanted(self) except -1:
        if self.lost and self.wanted is not None and self.out.eased is not None:
            wanted, self.wanted = self.wanted, None
            wanted()
        return 0

    def uses(self, uint64_t first, uint64_t last):
        """Whether a chain that is out has a buffer at any I/O virtual address from `first` to and with `last`."""
        return self.out.uses(Extent(first, last))

    def when_returned(self, call):
        """Has `call` called once, in any thread, when the next chain is given back or dropped."""
        self.out.returned = call

    # --- Serving ----------------------------------------------------------------------------------------

    def serve(self, Shortcut shortcut not None, queue, uint32_t most, call):
        """Has a shortcut serve chains, as those of `queue`; returns the first that it leaves, or None.

        None says that there are no more chains now, or that they have taken `most` of `effort`. `call` is called
        whenever the driver is to be interrupted; without it, `must_call` is to be asked later.

        Raises:
            BadRing, BadDescriptor, MemoryLost: as `pop`; and whatever the shortcut raises.
        """
        cdef Chain chain
        cdef int outcome
        cdef uint64_t end = self.out.effort + most
        cdef bint calls = call is not None
        try:
            while self.out.effort < end:
                chain = self.take()
                if chain is None:
                    return None
                outcome = shortcut.serve(queue, chain)
                if outcome == LEFT:
                    return chain
                if outcome == DONE and self.give_back(chain) and calls and self.asks_for_call():
                    call()
        finally:  # also for those before one that is broken
            shortcut.submit()
            if calls and self.asks_for_call():
                call()

    # --- Event suppression (virtio 1.3, 2.7.7, 2.7.10 and 2.8.10) ----------------------------------------

    def arm(self):
        """Asks for a kick at the next chain; True if there is one already, for which no kick may come.

        An unfinished chain is one. It may be there although `pop` gives none, because the ring is full.

        Raises:
            BadRing: what the ring says is available cannot be right.
            MemoryLost: a page of guest memory vanished.
        """
        self.patience = 1
        self.ask_for_kick()
        full_fence()
        return self.unfinished > 0 or self.has_next()

    def disarm(self):
        """Asks for no kicks, while the queue is being worked on anyway; some may come all the same."""
        if not self.out.held:
            self.ask_for_no_kicks()

    def must_call(self):
        """Does the driver want an interrupt for what was pushed since this was last asked?"""
        return self.asks_for_call()

    cdef bint asks_for_call(self) except -1:
        cdef uint32_t pushed = self.uncalled
        if not pushed:
            return False
        self.uncalled = 0
        full_fence()
        return self.wants_call(pushed)

    def begin_batch(self):
        """Has `push` begin anew: the next chain is one to tell the driver of, as after `arm`."""
        self.patience = 1

    cdef bint pace(self, uint32_t count) except -1:
        """So many chains were pushed: whether it is time to ask `must_call`."""
        # Beyond that, all that counts is that there were many.
        self.uncalled = min(self.uncalled + count, <uint32_t> UINT16_MAX + 1)
        self.memory.expect_whole()
        if self.uncalled < self.patience:
            return False
        self.patience = min(self.patience + 1, <uint32_t> MOST_PUSHES)
        return True

    cdef void log_own(self, unsigned char *at, size_t n) noexcept:
        """Tells the log of few bytes of the ring itself. In a row they may be in two pages that are apart."""
        cdef Window window
        for window in (self.used, self.desc, self.avail):
            if window.data <= at < window.data + window.size:
                self.out.log.dirtied(window.guest_address(at), n if window.row is None else 1)
                if window.row is not None:
                    self.out.log.dirtied(window.guest_address(at + n - 1), 1)
                return

    # --- For the formats --------------------------------------------------------------------------------

    cdef int refuse_head(self, uint32_t head, uint32_t at) except -1:
        if head >= self.size:
            raise self.memory.error(BadRing, f"{self.HEAD} {head} of {self.size} descriptors (at {at})")
        raise self.memory.error(BadRing, f"{self.HEAD} {head} is in flight already (at {at})")

    cdef int walk_indirect(self, Chain chain, uint64_t addr, uint32_t length, bint goes_on) except -1:
        """Adds the buffers of an indirect table (virtio 1.3, 2.7.5.3 and 2.8.7); nothing must go on behind it.

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
        elif goes_on:
            fault = "INDIRECT together with NEXT"
        elif length == 0 or length % DESC_SIZE:
            fault = "not a whole number of descriptors"
        elif length // DESC_SIZE > most:
            fault = f"more than {most} descriptors"
        else:
            table = self.memory.locate(addr, length, READS, &room)
            if table is NULL or room < length:  # it may go on in the next region
                try:
                    copy = self.memory.read(addr, length)
                    table = copy
                except BadDescriptor:
                    fault = "not in guest memory"
        if fault is not None:
            raise self.memory.error(
                BadDescriptor, f"chain {chain.head}: indirect table of {length} bytes at {addr:#x}: {fault}"
            )
        return self.walk_table(chain, table, length // DESC_SIZE)

    cdef bint has_next(self) except -1:
        raise NotImplementedError

    cdef Chain take_next(self):
        raise NotImplementedError

    cdef Chain find_again(self, uint32_t entry):
        raise NotImplementedError

    cdef void go_back(self, Chain chain) noexcept:
        pass

    cdef int write_used(self, Chain chain, uint32_t behind) except -1:
        raise NotImplementedError

    cdef int publish_used(self, uint32_t count) except -1:
        raise NotImplementedError

    cdef int ask_for_kick(self) except -1:
        raise NotImplementedError

    cdef int ask_for_no_kicks(self) except -1:
        raise NotImplementedError

    cdef bint wants_call(self, uint32_t pushed) except -1:
        raise NotImplementedError

    cdef int walk_table(self, Chain chain, unsigned char *table, uint32_t entries) except -1:
        raise NotImplementedError
