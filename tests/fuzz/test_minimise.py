"""What is left of a case, without a back-end."""

from itertools import count

from vhostd.fuzz.minimise import Minimiser
from vhostd.fuzz.operation import Await, Case, Connect, Jump, Kick, Offer, Send

CONNECT = Connect(rings=1, size=64, packed=False)
NOISE: Case = (Kick(ring=0), Await(), Jump(ring=0, count=7)) * 20
BAD = Send(request=8, flags=9, payload=b"\1\2\3\4\xff\xff\0\0")


def is_bad(case: Case) -> bool:
    return any(isinstance(each, Send) and each.payload[4:6] == b"\xff\xff" for each in case) and (
        CONNECT in case
    )


def test_only_what_matters_is_left_and_its_other_fields_are_zero() -> None:
    least = Minimiser(is_bad, lambda: True).minimise((CONNECT, *NOISE, BAD, *NOISE))
    assert least == (CONNECT, Send(request=8, flags=1, payload=b"\0\0\0\0\xff\xff\0\0"))


def test_two_operations_that_are_far_apart_are_both_kept() -> None:
    chain = Offer(ring=0, buffers=((5, 5, 0), (1, 9, 0)))

    def fails(case: Case) -> bool:
        return Kick(ring=3) in case and any(isinstance(each, Offer) for each in case)

    least = Minimiser(fails, lambda: True).minimise((chain, *NOISE, Kick(ring=3), *NOISE))
    assert least == (Offer(ring=0, buffers=((0, 0, 0),)), Kick(ring=3))


def test_it_ends_when_it_is_to_and_what_is_left_still_fails() -> None:
    turns = count()
    least = Minimiser(is_bad, lambda: next(turns) < 5).minimise((CONNECT, *NOISE, BAD, *NOISE))
    assert is_bad(least)
    assert len(least) > 2
