from vhost_user_input.chord import Chord

SYN = (0, 0, 0)
LEFT, RIGHT, A = 29, 97, 30


def strikes(*keys: tuple[int, int]) -> list[bool]:
    """Whether it is struck with each report of one key."""
    chord = Chord()
    struck = []
    for key in keys:
        assert not chord.follow(1, *key)
        struck.append(chord.follow(*SYN))
    return struck


def test_it_is_struck_when_all_keys_are_up_again() -> None:
    assert strikes((LEFT, 1), (RIGHT, 1), (RIGHT, 0), (LEFT, 0)) == [False, False, False, True]
    assert strikes((LEFT, 1), (RIGHT, 1), (A, 1), (A, 2), (RIGHT, 0), (LEFT, 0), (A, 0))[-2:] == [False, True]


def test_one_after_the_other_is_no_chord() -> None:
    assert not any(strikes((LEFT, 1), (LEFT, 0), (RIGHT, 1), (RIGHT, 0)))


def test_it_is_struck_once() -> None:
    keys = ((LEFT, 1), (RIGHT, 1), (RIGHT, 0), (LEFT, 0), (A, 1), (A, 0))
    assert strikes(*keys) == [False, False, False, True, False, False]


def test_keys_that_were_down_before_count() -> None:
    chord = Chord()
    chord.begin([LEFT, A])
    for key, end in (((RIGHT, 1), False), ((RIGHT, 0), False), ((LEFT, 0), False), ((A, 0), True)):
        chord.follow(1, *key)
        assert chord.follow(*SYN) == end
    chord.begin([LEFT])
    chord.begin([])
    chord.follow(1, RIGHT, 1)
    chord.follow(1, RIGHT, 0)
    assert not chord.follow(*SYN)
