"""The invariant: whatever bytes come, cut anywhere, good lines between bad ones count, reports are whole."""

from hypothesis import given
from hypothesis import strategies as st

from tests.devices.vhost_user_input.fakes import SYN, Event, split, unpack
from vhost_user_input.description import keyboard
from vhost_user_input.event_lines import MAX_LINE, EventLines

GOOD = b"E: 0.0 0001 001e 0001\nE: 0.0 0000 0000 0000\n"


def feed(*parts: bytes) -> tuple[list[Event], list[str]]:
    lines = EventLines(keyboard())
    heard = [*(lines.feed(part) for part in parts), lines.finish()]
    events = unpack(b"".join(bytes(each.reports) for each in heard))
    return events, [error for each in heard for error in each.errors]


def test_events() -> None:
    assert feed(GOOD) == ([(1, 30, 1), SYN], [])


def test_byte_by_byte() -> None:
    assert feed(*(bytes((byte,)) for byte in GOOD)) == ([(1, 30, 1), SYN], [])


def test_the_last_end_of_line_may_be_missing() -> None:
    assert feed(GOOD[:-1]) == ([(1, 30, 1), SYN], [])


def test_what_evemu_record_writes_besides() -> None:
    text = b"# EVEMU 1.3\nN: foo\nI: 1 2 3 4\nP: 00\nB: 01\nA: 00\nL: 00 1\nS: 00 1\n\n  \t\r\n"
    assert feed(text + GOOD.replace(b"\n", b"\t# EV_KEY / KEY_A 1\r\n")) == ([(1, 30, 1), SYN], [])


def test_a_byte_order_mark() -> None:
    assert feed(b"\xef\xbb\xbf" + GOOD) == ([(1, 30, 1), SYN], [])
    assert feed(b"\xef", b"\xbb\xbf" + GOOD) == ([(1, 30, 1), SYN], [])
    assert feed(GOOD + b"\xef\xbb\xbf" + GOOD)[1] != []


def test_bad_lines_cost_only_themselves() -> None:
    events, errors = feed(b"E: 0.0 1 3e7 1\nE: 0.0 1 1f x\nhello\n" + GOOD)
    assert events == [(1, 30, 1), SYN]
    assert errors == [
        "code 03e7 is not one of the device's codes of type 0001",
        "value 'x' is not a decimal number of 32 bits",
        "'hello' is not an E: line",
    ]


def test_long_lines_are_complained_about_once() -> None:
    for end in (b"", b"x" * 3 * MAX_LINE):
        events, errors = feed(b"E:" + b" " * MAX_LINE, end, end + b"\n" + GOOD)
        assert events == [(1, 30, 1), SYN]
        assert errors == [f"a line of more than {MAX_LINE} bytes"]


def test_long_reports_are_complained_about_once() -> None:
    press = GOOD.splitlines(keepends=True)[0]
    events, errors = feed(press * 5000 + GOOD + GOOD)
    assert events == [(1, 30, 1), SYN]
    assert errors == ["the report has more than 1024 events"]


def test_an_unfinished_report_is_counted() -> None:
    lines = EventLines(keyboard())
    lines.feed(GOOD + b"E: 0.0 1 1e 0\n")
    assert lines.incomplete == 1


LINES = st.one_of(
    st.sampled_from(GOOD.splitlines(keepends=True)),
    st.binary(max_size=30).filter(lambda line: b"\n" not in line).map(lambda line: b"? " + line + b"\n"),
)


@given(st.lists(LINES, max_size=30), st.data())
def test_the_invariant(lines: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    parts = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    events, errors = feed(*parts)
    good = feed(b"".join(line for line in lines if line.startswith(b"E:")))
    assert events == good[0]
    assert split(events)[-1] == []
    assert len(errors) == sum(not line.startswith(b"E:") for line in lines)


@given(st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    events, _ = feed(data)
    assert split(events)[-1] == []
