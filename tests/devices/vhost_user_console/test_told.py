"""What a driver is told of a port, by what it knows."""

from vhost_user_console.line import Size
from vhost_user_console.protocol import Event
from vhost_user_console.told import Facts, News, Told

CONSOLE = Facts(0, b"", is_console=True, is_open=False, size=Size(80, 24))
SERIAL = Facts(1, b"name", is_console=False, is_open=False, size=None)


def told_all(told: Told, facts: Facts) -> list[tuple[int, int]]:
    """The messages until the driver knows everything."""
    events = []
    while (news := told.news(facts)) is not None:
        told.tell(news)
        events.append((news.event, news.value))
    return events


def ready(facts: Facts) -> Told:
    """What a driver knows that was told everything."""
    told = Told()
    told_all(told, facts)
    told.is_ready = True
    told_all(told, facts)
    return told


def test_of_a_port_it_hears_no_more_until_it_has_set_it_up() -> None:
    told = Told()
    assert told_all(told, CONSOLE) == [(Event.PORT_ADD, 1)]
    told.is_ready = True
    assert told_all(told, CONSOLE) == [(Event.CONSOLE_PORT, 1), (Event.RESIZE, 0)]


def test_a_serial_port_has_a_name_before_it_is_open() -> None:
    told = Told()
    told.is_ready = told.is_added = True
    assert told_all(told, SERIAL._replace(is_open=True)) == [(Event.PORT_NAME, 1), (Event.PORT_OPEN, 1)]


def test_whoever_comes_and_goes() -> None:
    told = ready(SERIAL)
    assert told_all(told, SERIAL._replace(is_open=True)) == [(Event.PORT_OPEN, 1)]
    assert told_all(told, SERIAL) == [(Event.PORT_OPEN, 0)]


def test_of_somebody_new_it_hears_that_the_other_has_gone() -> None:
    facts = SERIAL._replace(is_open=True)
    told = ready(facts)
    told.was_closed = True
    assert told_all(told, facts) == [(Event.PORT_OPEN, 0), (Event.PORT_OPEN, 1)]


def test_the_last_size_counts() -> None:
    told = ready(CONSOLE)
    assert told.news(CONSOLE) is None
    assert told.news(CONSOLE._replace(size=Size(100, 30))) == News(Event.RESIZE, 0, Size(100, 30))
    assert told.news(CONSOLE._replace(size=None)) is None


def test_a_serial_port_has_no_size() -> None:
    told = ready(SERIAL)
    assert told.news(SERIAL._replace(size=Size(100, 30))) is None
