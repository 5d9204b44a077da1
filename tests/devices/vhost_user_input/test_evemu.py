from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.devices.vhost_user_input.fakes import Linux, split
from vhost_user_input.description import AbsInfo, Ids
from vhost_user_input.evemu import format_event, parse, parse_event
from vhost_user_input.events import BadEvent
from vhostd import SetupError

RECORDINGS = Path(__file__).parent / "recordings"

MOUSE = """\
# EVEMU 1.2
N: foo # bar
I: 0003 046d c05a 0111  # usb
P: 00 00 00 00 00 00 00 00
B: 00 0b 00 00 00 00 00 00 00
B: 01 00 00 00 00 00 00 00 00
B: 01 00 00 00 00 00 00 00 00
B: 01 00 00 00 00 00 00 00 00
B: 01 00 00 00 00 00 00 00 00
B: 01 00 00 ff 00 00 00 00 00
B: 02 03 00 00 00 00 00 00 00
B: 05 01 00 00 00 00 00 00 00
"""
ABSOLUTE = MOUSE + "B: 03 03 00 00 00 00 80 60 02\n"


def test_a_description_without_events() -> None:
    recording = parse(MOUSE, "f")
    device = recording.description
    assert device.name == "foo # bar"
    assert device.ids == Ids(3, 0x46D, 0xC05A, 0x111)
    assert device.codes == {0: {0, 1, 3}, 1: set(range(0x110, 0x118)), 2: {0, 1}, 5: {0}}
    assert not device.properties
    assert not device.axes
    assert not device.repeats
    assert device.slots == 0
    assert not recording.events
    assert not recording.switches


def test_axes_with_and_without_resolution() -> None:
    device = parse(ABSOLUTE + "A: 00 -5 1000 1 2\nA: 2f 0 9 0 0 0\nA: 35 0 7 0 0 40 # mm\n", "f").description
    assert device.axes[0] == AbsInfo(-5, 1000, 1, 2, 0)
    assert device.axes[0x35] == AbsInfo(0, 7, 0, 0, 40)
    assert device.axes[1] == AbsInfo(0, 1)  # evemu's own default
    assert device.slots == 10


def test_switches_and_leds() -> None:
    recording = parse(MOUSE + "L: 00 1\nS: 00 1\nS: 01 1\nS: 01 0\n", "f")
    assert recording.switches == {0}


def test_version_1_0_and_other_line_ends() -> None:
    old = "\n".join(line for line in MOUSE.splitlines() if not line.startswith("#"))
    assert parse(old.replace("\n", "\r\n"), "f").description == parse(MOUSE, "f").description


def test_version_1_0_tells_of_key_repeat_in_the_bitmap_of_types_only() -> None:
    """Without it the guest repeats no held key."""
    types = MOUSE.replace("B: 00 0b 00 00 00", "B: 00 0b 00 10 00")
    for text in (types, types + "B: 14 00 00 00 00 00 00 00 00\n"):
        device = parse(text, "f").description
        assert device.repeats
        assert device.codes[0x14] == {0, 1}
    assert parse(types + "B: 14 01 00 00 00 00 00 00 00\n", "f").description.codes[0x14] == {0}


def test_a_byte_order_mark() -> None:
    assert parse("\ufeff" + MOUSE, "f") == parse(MOUSE, "f")
    assert parse(MOUSE, "f", ("\ufeffE: 0.0 2 0 1", "g")).events == [(0, 2, 0, 1)]
    with pytest.raises(SetupError, match="f:2: "):
        parse("# EVEMU 1.2\n\ufeff" + MOUSE, "f")


def test_events_in_files_of_their_own() -> None:
    recording = parse(
        MOUSE, "f", ("# EVEMU 1.2\nE: 7.0 2 0 1\nE: 7.5 0 0 0\n", "g"), ("E: 3.0 2 0 2\nE: 4.0 0 0 0", "h")
    )
    assert recording.description == parse(MOUSE, "f").description
    assert recording.events == [
        (7_000_000, 2, 0, 1),
        (7_500_000, 0, 0, 0),
        (7_500_000, 2, 0, 2),
        (8_500_000, 0, 0, 0),
    ]


def test_files_that_do_not_go_together() -> None:
    for files, complaint in (
        ((("N: another", "g"),), "g:1: a second name, 'another'"),
        ((("E: 0.0 2 0 1", "g"), ("I: 1 2 3 4", "h")), "h:1: 'I: 1 2 3 4' after the first event"),
        ((("E: 0.0 2 7 1", "g"),), "g:1: code 0007"),
    ):
        with pytest.raises(SetupError, match=complaint):
            parse(MOUSE, "f", *files)
    with pytest.raises(SetupError, match="f: no N: line"):
        parse("# EVEMU 1.2", "f", (MOUSE, "g"))


def test_events_and_comments() -> None:
    text = MOUSE + "\n##\nE: 1.500000 0002 0000 -003\t# EV_REL / REL_X  -3\nE: 12.25 0 0 0\n#end"
    assert parse(text, "f").events == [(1_500_000, 2, 0, -3), (12_250_000, 0, 0, 0)]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("X: 1", "'X: 1'"),
        ("garbage", "'garbage'"),
        ("E 0.0 2 0 1", "'E 0.0 2 0 1'"),
        ("x" * 99, "'" + "x" * 40 + "...'"),
        ("N: again", "'again'"),
        ("I: 0003 046d c05a", "3 values where I: takes 4"),
        ("I: 0003 046d c05a 11111", "11111 is above ffff"),
        ("I: 0003 046d c05a mouse", "'mouse' is not a hexadecimal number"),
        ("P: 00 00 00 00 00 00 00", "7 values where P: takes 8"),
        ("P: 00 00 00 00 00 00 00 100", "100 is above ff"),
        ("B: 01 00", "2 values where B: takes 9"),
        ("B: 20 00 00 00 00 00 00 00 00", "20 is above 1f"),
        ("B: 01 00 00 00 00 00 00 -1 00", "'-1' is not"),
        ("A: 00 0 1 2", "4 values where A: takes 5"),
        ("A: 00 0 1 2 3 4 5", "7 values where A: takes 5"),
        ("A: 40 0 1 2 3", "40 is above 3f"),
        ("A: 00 0 1e 2 3", "'1e' is not a decimal number"),
        ("A: 00 0 2147483648 2 3", "'2147483648' is not a decimal number"),
        ("A: 2f 0 -1 0 0 0", "maximum -1 of ABS_MT_SLOT"),
        ("A: 2f 0 100000 0 0 0", "maximum 100000 of ABS_MT_SLOT"),
        ("L: 00", "1 values where L: takes 2"),
        ("L: 00 on", "'on' is not a decimal"),
        ("S: 100 1", "100 is above ff"),
        ("E: 0 2 0 1", "time '0' is not seconds.microseconds"),
        ("E: 0.0000001 2 0 1", "time '0.0000001'"),
        ("E: 0.0 2 0", "3 values where E: takes 4, time, type, code and value: 'E: 0.0 2 0'"),
        ("E: later", "time 'later' is not seconds.microseconds"),
        ("E:", "0 values where E: takes 4"),
        ("E: 0.0 2 0 1 5", "5 values where E: takes 4"),
        ("E: 0.0 EV_REL 0 1", "type 'EV_REL' is not"),
        ("E: 0.0 10002 0 1", "type '10002' is not"),
        ("E: 0.0 2 REL_X 1", "code 'REL_X' is not"),
        ("E: 0.0 2 0 0x1", "value '0x1' is not a decimal"),
        ("E: 0.0 2 0 1_0", "value '1_0'"),
        ("E: 0.0 2 0 4294967296", "value 4294967296 does not fit 32 bits"),
        ("E: 0.0 2 0 -2147483649", "value -2147483649 does not fit"),
        ("E: 0.0 3 0 1", "type 0003 is not one"),
        ("E: 0.0 2 5 1", "code 0005 is not one"),
        ("E: 0.0 0 4 0", "code 0004 is not one of EV_SYN"),
        ("E: 0.0 1 110 3", "value 3 is out of range"),
        ("E: 0.0 1 110 -1", "value -1 is out of range"),
        ("E: 0.0 5 0 2", "value 2 is out of range"),
    ],
)
def test_malformed_lines_are_named(line: str, complaint: str) -> None:
    with pytest.raises(SetupError) as error:
        parse(MOUSE + line + "\n", "dir/mouse.evemu")
    assert str(error.value).startswith(f"dir/mouse.evemu:{MOUSE.count(chr(10)) + 1}: ")
    assert complaint in str(error.value)


def test_bitmaps_have_an_end() -> None:
    line = "B: 02" + 8 * " 00" + "\n"
    parse(MOUSE + 15 * line, "f")
    with pytest.raises(SetupError, match="f:28: a bitmap of more than 128 bytes"):
        parse(MOUSE + 16 * line, "f")


def test_slots_and_contacts_have_ranges() -> None:
    device = ABSOLUTE + "A: 2f 0 4 0 0 0\n"
    parse(device + "E: 0.0 3 2f 4\nE: 0.0 3 39 -1\n", "f")
    for event in ("2f 5", "2f -1", "39 -2"):
        with pytest.raises(SetupError, match=f"value {event[3:]} is out of range"):
            parse(device + f"E: 0.0 3 {event}\n", "f")


def test_the_description_comes_first() -> None:
    with pytest.raises(SetupError, match=r"f:14: 'A: .*' after the first event"):
        parse(MOUSE + "E: 0.0 2 0 1\nA: 00 0 1 0 0\n", "f")
    with pytest.raises(SetupError, match="f:2: an event before"):
        parse("N: x\nE: 0.0 2 0 1\n", "f")


@pytest.mark.parametrize(
    ("text", "missing"), [("", "N"), ("# EVEMU 1.3\n", "N"), ("N: x\n", "I"), ("I: 1 2 3 4\n", "N")]
)
def test_what_is_not_a_description(text: str, missing: str) -> None:
    with pytest.raises(SetupError, match=f"f: no {missing}: line"):
        parse(text, "f")


@given(
    st.integers(0, 10**15), st.integers(0, 0xFFFF), st.integers(0, 0xFFFF), st.integers(-(2**31), 2**31 - 1)
)
def test_events_survive_a_round_trip(time: int, kind: int, code: int, value: int) -> None:
    event = (time, kind, code, value)
    assert parse_event(format_event(event)) == event


def test_the_form_of_events_is_evemus() -> None:
    assert format_event((12_000_034, 1, 0x110, 1)) == "E: 12.000034 0001 0110 0001"
    assert format_event((0, 3, 0x39, -1)) == "E: 0.000000 0003 0039 -001"


@given(st.text(max_size=60))
def test_any_text_is_an_event_or_bad(text: str) -> None:
    for line in (text, "E: " + text, "E: 0.0 1 1 1" + text):
        with suppress(BadEvent):
            parse_event(line)


@given(st.text(max_size=60))
def test_any_line_is_taken_or_refused(line: str) -> None:
    for text in (line, MOUSE + line, MOUSE + "B: 03 " + line, MOUSE + "A: " + line):
        with suppress(SetupError):
            parse(text, "f")


@pytest.mark.parametrize(
    ("name", "ids", "events", "longest"),
    [
        ("keyboard", Ids(0x11, 1, 1, 0xAB41), 120, 3),
        ("mouse", Ids(3, 0x46D, 0xC05A, 0x111), 191, 5),
        ("tablet", Ids(3, 0x56A, 0x357, 0x110), 193, 9),
        ("touchscreen", Ids(0x18, 0x4F3, 0x2B7C, 0x100), 904, 41),
    ],
)
def test_the_recordings(name: str, ids: Ids, events: int, longest: int) -> None:
    path = RECORDINGS / f"{name}.evemu"
    recording = parse(path.read_text(), path.name)
    assert recording.description.ids == ids
    assert len(recording.events) == events
    times = [event[0] for event in recording.events]
    assert times == sorted(times)
    reports = split([event[1:] for event in recording.events])
    assert reports.pop() == []
    assert max(map(len, reports)) + 1 == longest
    assert all(reports)


@pytest.mark.parametrize("name", ["keyboard", "mouse", "tablet", "touchscreen"])
def test_linux_filters_nothing_of_the_recordings(name: str) -> None:
    """Replayed into a guest they must come out as they went in, so no event may say what is already so."""
    path = RECORDINGS / f"{name}.evemu"
    recording = parse(path.read_text(), path.name)
    guest = Linux(recording.description.slots)
    events = [event[1:] for event in recording.events]
    for event in events:
        guest.apply(*event)
    assert guest.changes == [event for event in events if event[:2] != (3, 0x2F)]
    assert guest.keys == set()
    slots = [(before, after) for before, after in pairwise(events) if before[:2] == (3, 0x2F)]
    assert all(after[0] == 3 and 0x30 <= after[1] <= 0x3D for _, after in slots)
    current = 0
    for (_, _, slot), _ in slots:
        assert slot != current
        current = slot
