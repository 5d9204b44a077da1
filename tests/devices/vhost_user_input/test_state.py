import pytest

from tests.devices.vhost_user_input.fakes import SYN, Event, pack, unpack
from vhost_user_input.description import AbsInfo, Description
from vhost_user_input.state import ELEMENT, STATE, State
from vhostd import RefusedRequest, Unpacker

KEY_A, KEY_B = (1, 30), (1, 48)
SLOT, X, CONTACT = (3, 0x2F), (3, 0x35), (3, 0x39)


def state(*events: Event, slots: bool = False) -> State:
    made = State(slots=slots)
    made.apply(pack(*events))
    return made


def steps(before: State, after: State) -> list[Event]:
    return unpack(before.until(after))


def test_nothing_differs() -> None:
    assert steps(state(), state()) == []
    assert steps(state((*KEY_A, 1), (*KEY_A, 0)), state()) == []


def test_keys_switches_and_axes() -> None:
    before = state((*KEY_A, 1), (5, 0, 1), (3, 0, 100))
    after = state((*KEY_B, 1), (3, 0, 120), (3, 1, -3))
    assert steps(before, after) == [(*KEY_A, 0), (*KEY_B, 1), (3, 0, 120), (3, 1, -3), (5, 0, 0), SYN]


def test_repeats_and_what_does_not_last_change_nothing() -> None:
    assert state((*KEY_A, 2), (2, 0, 5), (4, 4, 30), (0x11, 0, 1), SYN) == state()


def test_protocol_a_contacts_do_not_last() -> None:
    assert state((*X, 7), (0, 2, 0), SYN) == state()


def test_contacts_by_slot() -> None:
    after = state((*CONTACT, 5), (*X, 70), (*SLOT, 3), (*CONTACT, 6), (*X, 80), slots=True)
    assert steps(state(slots=True), after) == [
        (*CONTACT, 5),
        (*X, 70),
        (*SLOT, 3),
        (*CONTACT, 6),
        (*X, 80),
        SYN,
    ]


def test_ends_at_the_current_slot() -> None:
    after = state((*SLOT, 3), (*CONTACT, 6), (*SLOT, 1), slots=True)
    assert steps(state(slots=True), after) == [(*SLOT, 3), (*CONTACT, 6), (*SLOT, 1), SYN]
    assert steps(state((*SLOT, 2), slots=True), state(slots=True)) == [(*SLOT, 0), SYN]


def test_another_contact_is_put_down_after_the_old_one_is_lifted() -> None:
    before = state((*CONTACT, 5), (*X, 70), slots=True)
    after = state((*CONTACT, 6), (*X, 71), slots=True)
    assert steps(before, after) == [(*CONTACT, -1), SYN, (*CONTACT, 6), (*X, 71), SYN]


def test_a_lifted_contact_keeps_its_place() -> None:
    # The next contact there says only what differs from it.
    after = state((*CONTACT, 5), (*X, 70), (*CONTACT, -1), slots=True)
    assert steps(state(slots=True), after) == [(*X, 70), SYN]


def test_doubt_makes_everything_be_said_that_may_not_be_known() -> None:
    doubtful = state((*KEY_A, 1), (*KEY_B, 1), (*KEY_B, 0), (3, 0, 9))
    doubtful.doubt()
    assert steps(doubtful, state()) == [(*KEY_A, 0), (3, 0, 0), SYN]
    assert steps(doubtful, state((*KEY_A, 1))) == [(*KEY_A, 1), (3, 0, 0), SYN]


def test_doubt_about_contacts() -> None:
    doubtful = state((*SLOT, 1), (*CONTACT, 5), slots=True)
    doubtful.doubt()
    assert steps(doubtful, state(slots=True)) == [(*SLOT, 1), (*CONTACT, -1), (*SLOT, 0), SYN]
    same = state((*SLOT, 1), (*CONTACT, 5), slots=True)
    assert steps(doubtful, same) == [(*SLOT, 1), (*CONTACT, -1), SYN, (*CONTACT, 5), SYN]


def test_set_and_show() -> None:
    made = State(slots=True)
    made.set(3, 0x35, 9, slot=2)
    assert made != State(slots=True)
    assert repr(made) == "State(slot=0, {'200030035': 9})"
    assert made != 3


def test_what_is_held_can_be_released() -> None:
    held = state(
        (*KEY_A, 1), (*KEY_B, 2), (5, 0, 1), (3, 0, 9), (*SLOT, 1), (*CONTACT, 5), (*X, 7), slots=True
    )
    assert len(held.held()) == 2
    assert steps(held, held.released()) == [(*KEY_A, 0), (*CONTACT, -1), SYN]
    assert not held.released().held()
    assert held.released([]) == held


def test_what_may_be_held_counts_as_held() -> None:
    doubtful = state((*KEY_A, 1))
    doubtful.doubt()
    assert steps(doubtful, doubtful.released()) == [(*KEY_A, 0), SYN]


def test_doubt_about_what_only_one_side_knows() -> None:
    guest = state((3, 0, 1), (3, 1, 2))
    guest.doubt_all(Description(), state((3, 1, 2), (3, 2, 3)))
    assert steps(guest, state((3, 1, 2), (3, 2, 3))) == [(3, 0, 0), (3, 1, 2), (3, 2, 3), SYN]


def test_without_any_knowledge_all_is_said_that_can_be_held() -> None:
    device = Description(
        codes={1: frozenset((30, 48)), 3: frozenset((0, 1, 0x2F, 0x39)), 5: frozenset((0,))},
        axes={0x2F: AbsInfo(0, 1)},
    )
    now = state((*KEY_B, 1), (3, 0, 9), slots=True)
    unknown = state(slots=True)
    unknown.doubt_all(device, now)
    assert steps(unknown, now) == [
        (*SLOT, 0),
        (*CONTACT, -1),
        (*KEY_A, 0),
        (*KEY_B, 1),
        (3, 0, 9),
        (5, 0, 0),
        (*SLOT, 1),
        (*CONTACT, -1),
        (*SLOT, 0),
        SYN,
    ]


def packed(before: State, description: Description) -> State:
    """The state after it was packed and unpacked."""
    unpacker = Unpacker(before.pack())
    after = State.unpack(unpacker, description)
    unpacker.end()
    return after


PAD = Description(
    codes={1: frozenset((30, 31)), 3: frozenset((0, 0x2F, 0x35, 0x39)), 5: frozenset((0,))},
    axes={0x2F: AbsInfo(0, 2)},
)


def test_a_state_as_bytes() -> None:
    before = state((1, 30, 1), (5, 0, 1), (3, 0, -5), (3, 0x2F, 2), (3, 0x39, 7), (3, 0x35, 9), slots=True)
    assert packed(before, PAD) == before
    assert packed(State(slots=True), PAD) == State(slots=True)
    before.doubt()
    assert packed(before, PAD).until(before) == b""
    assert steps(packed(before, PAD), State(slots=True)) == steps(before, State(slots=True))


def saved(slot: int, *elements: tuple[int, int, int, int, int]) -> bytes:
    return STATE.pack(slot, len(elements)) + b"".join(ELEMENT.pack(*element) for element in elements)


@pytest.mark.parametrize(
    "data",
    [
        saved(3),
        saved(-2),
        saved(0, (0, 1, 32, 1, 1)),  # another key
        saved(0, (0, 1, 32, 0, 0)),
        saved(0, (0, 1, 30, 1, 3)),  # not a key's value
        saved(0, (1, 1, 30, 1, 1)),  # a key in a slot
        saved(0, (0, 2, 0, 1, 1)),  # what does not last
        saved(0, (0, 0, 0, 1, 1)),
        saved(0, (0, 0x11, 0, 1, 1)),
        saved(0, (0, 3, 0x2F, 1, 1)),  # the slot itself
        saved(0, (3, 3, 0x39, 1, 1)),  # a slot too many
        saved(0, (1, 3, 0, 1, 1)),  # an axis of no contact in a slot
        saved(0, (0, 3, 0x39, 1, -2)),
        saved(0, (0xFFFF_FFFF, 3, 0x39, 1, 1)),
        STATE.pack(0, 0xFFFF_FFFF),
    ],
)
def test_a_state_that_the_device_cannot_have(data: bytes) -> None:
    with pytest.raises(RefusedRequest):
        State.unpack(Unpacker(data), PAD)
