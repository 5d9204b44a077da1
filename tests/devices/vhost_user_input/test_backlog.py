"""The invariant: what the guest receives is a sequence of whole reports, in order, and after the last one its
state equals the device's, whatever was dropped, stopped and started in between.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.devices.vhost_user_input.fakes import SYN, Event, Linux, pack, split, unpack
from vhost_user_input.backlog import CAPACITY, Backlog
from vhost_user_input.description import AbsInfo, Description, keyboard
from vhost_user_input.state import State
from vhostd import RefusedRequest, Unpacker

SYN_DROPPED = (0, 3, 0)
PRESS, RELEASE = (1, 30, 1), (1, 30, 0)
SLOTS = 3


def drain(backlog: Backlog, limit: int = 1 << 20) -> list[Event]:
    events = b""
    while limit and (head := backlog.head(min(limit, 5))):
        backlog.delivered(head)
        events += head
        limit -= len(head) // 8
    return unpack(events)


def listening(capacity: int = CAPACITY, *, slots: bool = False) -> Backlog:
    backlog = Backlog(slots=slots, capacity=capacity)
    backlog.start()
    return backlog


def test_in_order() -> None:
    backlog = listening()
    backlog.add(pack(PRESS, SYN))
    backlog.add(pack(RELEASE, SYN))
    assert len(backlog) == 4
    assert drain(backlog) == [PRESS, SYN, RELEASE, SYN]


def test_head_leaves_the_events_waiting() -> None:
    backlog = listening()
    backlog.add(pack(PRESS, SYN))
    assert backlog.head(1) == backlog.head(1) == pack(PRESS)
    backlog.delivered(b"")
    assert drain(backlog) == [PRESS, SYN]


def test_nothing_waits_for_nobody_but_the_state_does() -> None:
    backlog = Backlog(slots=False)
    backlog.add(pack((2, 0, 5), PRESS, SYN))
    assert len(backlog) == 0
    backlog.start()
    assert drain(backlog) == [PRESS, SYN]
    backlog.start()
    assert drain(backlog) == []


def test_a_full_backlog_drops_whole_reports_and_makes_up_for_them() -> None:
    backlog = listening(capacity=4)
    backlog.add(pack(PRESS, SYN))
    backlog.add(pack((2, 0, 5), (2, 1, 5), SYN))
    backlog.add(pack(RELEASE, (1, 31, 1), SYN))
    backlog.add(pack((2, 0, 1), SYN))  # would fit, but must not overtake what is missing
    assert drain(backlog) == [PRESS, SYN, SYN_DROPPED, SYN, RELEASE, (1, 31, 1), SYN]
    backlog.add(pack((1, 31, 0), SYN))
    assert drain(backlog) == [(1, 31, 0), SYN]


def test_a_batch_above_the_capacity_is_made_up_for_at_once() -> None:
    backlog = listening(capacity=2)
    backlog.add(pack(PRESS, (2, 0, 5), SYN))
    assert drain(backlog) == [SYN_DROPPED, SYN, PRESS, SYN]


def test_the_guest_is_told_of_losses_that_change_no_state() -> None:
    backlog = listening(capacity=2)
    backlog.add(pack((2, 0, 5), (2, 1, 5), SYN))
    assert drain(backlog) == [SYN_DROPPED, SYN]


def test_a_source_that_lost_events() -> None:
    backlog = listening()
    backlog.add(pack(PRESS, SYN))
    now = State()
    now.set(1, 31, 1)
    backlog.replace(now)
    assert drain(backlog) == [PRESS, SYN, SYN_DROPPED, SYN, RELEASE, (1, 31, 1), SYN]


def test_a_stop_drops_the_rest_of_a_report() -> None:
    backlog = listening()
    backlog.add(pack(PRESS, (1, 31, 1), SYN))
    assert drain(backlog, 1) == [PRESS]
    backlog.stop()
    assert len(backlog) == 0
    backlog.add(pack(RELEASE, (1, 31, 0), SYN))
    backlog.start()
    # Whether the guest has rebooted is not known: it may still believe that the key is pressed.
    assert drain(backlog) == [RELEASE, SYN]


def test_a_torn_report_of_a_guest_that_only_paused_is_ended() -> None:
    backlog = listening()
    backlog.add(pack(PRESS, SYN))
    backlog.add(pack(RELEASE, SYN))
    assert drain(backlog, 3) == [PRESS, SYN, RELEASE]
    backlog.stop()
    backlog.start()
    assert drain(backlog) == [SYN]


def test_what_is_held_over_a_stop_is_said_again() -> None:
    backlog = listening()
    backlog.add(pack(PRESS, SYN))
    drain(backlog)
    backlog.stop()
    backlog.start()
    assert drain(backlog) == [PRESS, SYN]


def test_at_the_end_all_that_is_held_is_released_and_no_more_is_said() -> None:
    backlog = listening(slots=True)
    backlog.add(pack(PRESS, (3, 0, 4), (3, 0x39, 5), SYN))
    assert drain(backlog, 4) == [PRESS, (3, 0, 4), (3, 0x39, 5), SYN]
    backlog.add(pack(RELEASE, (1, 31, 1), SYN))
    assert drain(backlog, 2) == [RELEASE, (1, 31, 1)]
    backlog.add(pack((1, 32, 1), SYN))
    backlog.end()
    assert drain(backlog) == [(3, 0x39, -1), (1, 31, 0), SYN]


def test_at_the_end_a_torn_report_is_ended() -> None:
    backlog = listening()
    backlog.add(pack(PRESS, RELEASE, SYN))
    drain(backlog, 2)
    backlog.end()
    assert drain(backlog) == [SYN]


def test_the_end_of_what_nobody_hears() -> None:
    backlog = Backlog(slots=False)
    backlog.add(pack(PRESS, SYN))
    backlog.end()
    assert len(backlog) == 0


def test_a_guest_that_another_program_has_told_anything() -> None:
    """Nothing stays down that is not down here."""
    backlog = Backlog(slots=False)
    backlog.add(pack(PRESS, SYN))
    backlog.doubt(keyboard())
    backlog.start()
    events = drain(backlog)
    assert len(events) == len(keyboard().codes[1]) + 1
    assert [event for event in events if event[2]] == [PRESS]


# --- Another program ------------------------------------------------------------------------------------

TABLET = Description(codes={1: frozenset((30,)), 3: frozenset((0, 1)), 5: frozenset((0,))})


def moved(source: Backlog, destination: Backlog, description: Description = TABLET) -> list[Event]:
    """What the guest is told when it goes on with the destination."""
    source.stop()
    destination.load(Unpacker(source.save()), description)
    destination.start()
    return drain(destination)


def told(*events: Event) -> Backlog:
    """A backlog whose guest knows of these."""
    backlog = listening()
    backlog.add(pack(*events, SYN))
    drain(backlog)
    return backlog


def test_what_was_held_is_held_no_more_and_axes_stay_where_they_are() -> None:
    source = told(PRESS, (3, 0, 100), (3, 1, 200), (5, 0, 1))
    events = moved(source, Backlog(slots=False))
    assert sorted(events) == sorted([RELEASE, (3, 0, 100), (3, 1, 200), (5, 0, 0), SYN])


def test_what_the_device_knows_here_is_right() -> None:
    destination = Backlog(slots=False)
    destination.add(pack(PRESS, (3, 0, 7), (5, 0, 1), SYN))
    events = moved(told((3, 0, 100), (3, 1, 200)), destination)
    assert sorted(events) == sorted([PRESS, (3, 0, 7), (3, 1, 200), (5, 0, 1), SYN])


def test_a_report_that_was_torn_by_the_move_is_ended() -> None:
    source = listening()
    source.add(pack((2, 0, 1), (2, 1, 1), SYN))
    assert drain(source, 1) == [(2, 0, 1)]
    assert moved(source, Backlog(slots=False)) == [SYN]


def test_a_key_that_was_released_before_is_not_told_of() -> None:
    assert moved(told(PRESS, SYN, RELEASE), Backlog(slots=False)) == []


def test_nobody_is_left_behind_with_a_loaded_state() -> None:
    """A guest that boots here later is told all that is not at rest, whatever the one before knew."""
    destination = Backlog(slots=False)
    moved(told((3, 0, 100)), destination)
    destination.stop()
    destination.start()
    assert drain(destination) == [(3, 0, 100), SYN]


def test_a_state_that_is_wrong_changes_nothing() -> None:
    source, destination = told(PRESS, (3, 0, 100)), told(PRESS)
    source.stop()
    destination.stop()
    state, before = source.save(), destination.save()
    wrong = [state[:size] for size in range(len(state))] + [state + b"\0"]
    for each in wrong:
        with pytest.raises(RefusedRequest):
            destination.load(Unpacker(each), TABLET)
    assert destination.save() == before


CHANGES = st.one_of(
    st.tuples(st.just(1), st.integers(30, 32), st.integers(0, 2)),
    st.tuples(st.just(5), st.integers(0, 1), st.integers(0, 1)),
    st.tuples(st.just(2), st.just(0), st.integers(-3, 3)),
    st.tuples(st.just(3), st.integers(0, 1), st.integers(-2, 2)),
    st.tuples(st.just(3), st.just(0x2F), st.integers(0, SLOTS - 1)),
    st.tuples(st.just(3), st.just(0x39), st.integers(-1, 4)),
    st.tuples(st.just(3), st.integers(0x35, 0x36), st.integers(0, 3)),
)
DEVICE = Description(
    codes={
        1: frozenset((30, 31, 32)),
        3: frozenset((0, 1, 0x2F, 0x35, 0x36, 0x39)),
        5: frozenset((0, 1)),
    },
    axes={0x2F: AbsInfo(0, SLOTS - 1)},
)
REPORTS = st.lists(CHANGES, min_size=1, max_size=8)
STEPS = st.lists(
    st.one_of(
        REPORTS,
        st.integers(0, 12),  # the guest takes so many events
        st.sampled_from(("start", "stop", "reboot", "lost", "another program", "migrate")),
    ),
    max_size=30,
)


class World:
    """A device and a guest, with a backlog between them; every report of the device bears a number."""

    def __init__(self) -> None:
        self.backlog = Backlog(slots=True, capacity=24)
        self.device = Linux(SLOTS)
        self.state = State(slots=True)  # what a source would read
        self.guest = Linux(SLOTS)
        self.sent: list[list[Event]] = []
        self.got: list[Event] = []

    def report(self, changes: list[Event]) -> None:
        report = [(4, 0, len(self.sent)), *changes]
        self.sent.append(report)
        for change in changes:
            if change[0] != 1 or change[2] != 2:
                self.device.apply(*change)
        self.state.apply(pack(*changes))
        self.backlog.add(pack(*report, SYN))

    def take(self, count: int) -> None:
        for event in drain(self.backlog, count):
            self.got.append(event)
            if event[0] != 1 or event[2] != 2:
                self.guest.apply(*event)

    def stop(self) -> None:
        self.backlog.stop()
        self.check_reports(whole=False)
        self.got = []

    def lose(self) -> None:
        now = State(slots=True)
        now.apply(self.state.__class__(slots=True).until(self.state))
        self.backlog.replace(now)

    def change_hands(self) -> None:
        """Another program serves the guest for a while, and tells it what it likes."""
        self.stop()
        self.guest.keys = {30, 32}
        self.guest.switches = {1}
        self.guest.slot = 2
        self.guest.contacts[1][0x39] = 9
        self.backlog.doubt(DEVICE)

    def migrate(self) -> None:
        """The guest goes on with a program elsewhere, whose device nobody has touched yet."""
        self.stop()
        saved = self.backlog.save()
        self.backlog = Backlog(slots=True, capacity=24)
        self.backlog.load(Unpacker(saved), DEVICE)
        self.device.keys.clear()
        self.device.switches.clear()
        self.device.slot = self.state.slot = 0
        for contact in self.device.contacts:
            contact[0x39] = -1
        self.state = self.state.moved_to(State(slots=True))

    def step(self, step: list[Event] | int | str) -> None:
        if isinstance(step, list):
            self.report(step)
        elif isinstance(step, int):
            self.take(step)
        elif step == "start":
            self.backlog.start()
        elif step == "lost":
            self.lose()
        elif step == "another program":
            self.change_hands()
        elif step == "migrate":
            self.migrate()
        else:
            self.stop()
            if step == "reboot":
                self.guest = Linux(SLOTS)

    def check_reports(self, *, whole: bool) -> None:
        *reports, rest = split(self.got)
        assert not (whole and rest)
        numbers = []
        for report in reports:
            if report and report[0][:2] == (4, 0):
                numbers.append(report[0][2])
                assert report == self.sent[numbers[-1]]
            else:
                assert all(event[:2] != (4, 0) for event in report)
        assert numbers == sorted(set(numbers))


@given(STEPS)
def test_the_invariant(steps: list[list[Event] | int | str]) -> None:
    world = World()
    for step in steps:
        world.step(step)
    world.backlog.start()
    world.take(1 << 20)
    world.check_reports(whole=True)
    assert world.guest.state == world.device.state


@given(STEPS)
def test_nothing_is_held_after_the_end(steps: list[list[Event] | int | str]) -> None:
    world = World()
    for step in steps:
        world.step(step)
    world.backlog.start()
    world.backlog.end()
    world.take(1 << 20)
    assert not world.guest.keys
    assert all(contact[0x39] == -1 for contact in world.guest.contacts)


@given(st.lists(REPORTS, max_size=20))
def test_a_guest_that_keeps_up_gets_just_what_was_reported(reports: list[list[Event]]) -> None:
    world = World()
    world.backlog.start()
    for report in reports:
        world.report(report)
        world.take(1 << 20)
    assert split(world.got)[:-1] == world.sent
