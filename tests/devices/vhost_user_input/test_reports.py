import pytest

from tests.devices.vhost_user_input.fakes import SYN, Event, pack
from vhost_user_input.description import Description, keyboard
from vhost_user_input.events import BadEvent
from vhost_user_input.reports import MAX_REPORT, Reports

PLAIN = Description()


def feed(reports: Reports, *events: Event) -> list[bytes]:
    return [report for event in events if (report := reports.add(*event))]


def test_cuts_at_syn_report() -> None:
    reports = Reports(PLAIN)
    assert feed(reports, (1, 30, 1), SYN, (2, 0, 1), (2, 1, 1)) == [pack((1, 30, 1), SYN)]
    assert reports.incomplete == 2
    assert feed(reports, (0, 0, 1)) == [pack((2, 0, 1), (2, 1, 1), SYN)]
    assert reports.incomplete == 0


def test_an_empty_report_is_none() -> None:
    assert feed(Reports(PLAIN), SYN, SYN) == []


def test_other_syn_events_are_part_of_a_report() -> None:
    assert feed(Reports(PLAIN), (3, 0x35, 1), (0, 2, 0), SYN) == [pack((3, 0x35, 1), (0, 2, 0), SYN)]


@pytest.mark.parametrize("kind", [0x11, 0x12, 0x14])
def test_what_is_the_drivers_is_left_out(kind: int) -> None:
    assert feed(Reports(PLAIN), (kind, 0, 1), SYN) == []
    assert feed(Reports(PLAIN), (1, 30, 1), (kind, 0, 1), SYN) == [pack((1, 30, 1), SYN)]


def test_repeats_are_left_to_a_guest_that_makes_them() -> None:
    assert feed(Reports(keyboard()), (1, 30, 2), (0, 0, 1)) == []
    assert feed(Reports(PLAIN), (1, 30, 2), (0, 0, 1)) == [pack((1, 30, 2), SYN)]


def test_an_overlong_report_is_dropped_as_a_whole() -> None:
    reports = Reports(PLAIN)
    longest = [(2, 0, 1)] * (MAX_REPORT - 1)
    assert feed(reports, *longest, SYN) == [pack(*longest, SYN)]
    feed(reports, *longest)
    with pytest.raises(BadEvent, match=str(MAX_REPORT)):
        reports.add(2, 0, 1)
    assert feed(reports, (2, 0, 1), SYN) == []
    assert feed(reports, (2, 0, 1), SYN) == [pack((2, 0, 1), SYN)]


def test_clear() -> None:
    reports = Reports(PLAIN)
    feed(reports, (1, 30, 1))
    reports.clear()
    assert feed(reports, (1, 31, 1), SYN) == [pack((1, 31, 1), SYN)]
