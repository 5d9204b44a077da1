"""The invariant: when every origin has left nothing is held, and none releases what another holds."""

from hypothesis import given
from hypothesis import strategies as st

from tests.devices.vhost_user_input.fakes import SYN, FakeSink, Linux, pack
from vhost_user_input.state import State

PRESS, RELEASE = (1, 30, 1), (1, 30, 0)
SLOT, X, CONTACT = (3, 0x2F), (3, 0x35), (3, 0x39)
SLOTS = 3


def test_what_is_held_is_released() -> None:
    sink = FakeSink()
    origin = sink.origin()
    origin.deliver(pack(PRESS, (1, 31, 1), (1, 31, 0), (5, 0, 1), (3, 0, 40), SYN))
    sink.events.clear()
    origin.leave()
    assert sink.events == [RELEASE, SYN]
    assert not sink.origins
    origin.leave()
    assert len(sink.events) == 2


def test_buttons_and_contacts_too_and_the_current_slot_stays() -> None:
    sink = FakeSink(slots=True)
    origin = sink.origin()
    touch = (1, 0x14A)
    origin.deliver(pack((*CONTACT, 5), (*X, 7), (*SLOT, 2), (*CONTACT, 6), (*SLOT, 1), (*touch, 1), SYN))
    sink.events.clear()
    origin.leave()
    assert sink.events == [
        (*SLOT, 0),
        (*CONTACT, -1),
        (*touch, 0),
        (*SLOT, 2),
        (*CONTACT, -1),
        (*SLOT, 1),
        SYN,
    ]


def test_what_another_holds_stays() -> None:
    sink = FakeSink()
    one, other = sink.origin(), sink.origin()
    one.deliver(pack(PRESS, SYN))
    other.deliver(pack(PRESS, (1, 31, 1), SYN))
    sink.events.clear()
    one.leave()
    assert sink.events == []
    other.leave()
    assert sink.events == [RELEASE, (1, 31, 0), SYN]


def test_what_another_has_released_or_replaced_is_no_longer_held() -> None:
    sink = FakeSink(slots=True)
    one, other = sink.origin(), sink.origin()
    one.deliver(pack(PRESS, (*CONTACT, 5), SYN))
    other.deliver(pack(RELEASE, (*CONTACT, 6), SYN))
    sink.events.clear()
    one.leave()
    assert sink.events == []
    other.leave()
    assert sink.events == [(*CONTACT, -1), SYN]


def test_each_has_a_current_slot_of_its_own() -> None:
    sink = FakeSink(slots=True)
    one, other = sink.origin(), sink.origin()
    one.deliver(pack((*SLOT, 2), (*CONTACT, 5), SYN))
    other.deliver(pack((*CONTACT, 6), SYN))
    one.deliver(pack((*X, 7), SYN))
    assert sink.events[3:] == [(*SLOT, 0), (*CONTACT, 6), SYN, (*SLOT, 2), (*X, 7), SYN]


def test_a_change_says_what_differs() -> None:
    sink = FakeSink()
    origin = sink.origin()
    origin.deliver(pack(PRESS, SYN))
    now = State()
    now.set(3, 0, 12)
    sink.events.clear()
    origin.change(now)
    origin.change(now)
    assert sink.events == [RELEASE, (3, 0, 12), SYN]


def test_a_replaced_state_is_held_as_well() -> None:
    sink = FakeSink()
    origin = sink.origin()
    now = State()
    now.set(1, 30, 1)
    origin.replace(now)
    assert sink.states == [now]
    origin.release()
    assert sink.events == [RELEASE, SYN]


CHANGES = st.one_of(
    st.tuples(st.just(1), st.integers(30, 32), st.integers(0, 2)),
    st.tuples(st.just(3), st.just(0x2F), st.integers(0, SLOTS - 1)),
    st.tuples(st.just(3), st.just(0x39), st.integers(-1, 4)),
    st.tuples(st.just(3), st.integers(0x35, 0x36), st.integers(0, 3)),
)


@given(st.lists(st.tuples(st.integers(0, 2), st.lists(CHANGES, min_size=1, max_size=5)), max_size=20))
def test_the_invariant(reports: list[tuple[int, list[tuple[int, int, int]]]]) -> None:
    sink, guest = FakeSink(slots=True), Linux(SLOTS)
    origins = [sink.origin() for _ in range(3)]
    for number, changes in reports:
        origins[number].deliver(pack(*changes, SYN))
    for origin in origins:
        held = [each.state.held() for each in origins if each is not origin and each in sink.origins]
        before = sink.state.held()
        origin.leave()
        for element, value in before.items():
            if any(each.get(element) == value for each in held):
                assert sink.state.held().get(element) == value
    for event in sink.events:
        if event[0] != 1 or event[2] != 2:
            guest.apply(*event)
    assert not guest.keys
    assert all(contact[0x39] == -1 for contact in guest.contacts)
