"""Operations: their JSON form, and what is simpler."""

import pytest

from vhostd.fuzz.operation import Case, Connect, Kick, Offer, Send, from_json, to_json

CASE: Case = (
    Connect(rings=2, size=64, packed=True),
    Send(request=5, flags=9, payload=b"\x01\xff", fds=("memory0", "pipe"), size=7),
    Offer(ring=1, buffers=((2**64 - 1, 2**32 - 1, 2), (0, 0, 0))),
    Kick(ring=0, count=3),
)


def test_a_case_comes_back_from_its_json() -> None:
    assert from_json(to_json(CASE)) == CASE


@pytest.mark.parametrize(
    "text",
    ["", "{}", '[{"op": "explode"}]', '[{"op": "kick", "ring": 256}]', '[{"op": "await", "more": 1}]'],
)
def test_anything_else_is_no_case(text: str) -> None:
    with pytest.raises(ValueError, match="validation error"):
        from_json(text.encode())


def test_a_message_becomes_simpler_in_one_place_at_a_time() -> None:
    message = Send(request=9, flags=9, payload=b"\1" * 4 + b"\0" * 4, fds=("pipe", "file"), size=3)
    assert list(message.simpler()) == [
        message.model_copy(update={"size": None}),
        message.model_copy(update={"fds": ("pipe",)}),
        message.model_copy(update={"flags": 1}),
        message.model_copy(update={"payload": bytes(8)}),
    ]


def test_a_chain_becomes_shorter_and_then_empty() -> None:
    chain = Offer(ring=0, buffers=((8, 4, 0), (0, 0, 2)))
    assert [each.buffers for each in chain.simpler()] == [
        ((0, 0, 2),),
        ((8, 4, 0),),
        ((0, 4, 0), (0, 0, 2)),
        ((8, 0, 0), (0, 0, 2)),
        ((8, 4, 0), (0, 0, 0)),
    ]


def test_the_size_of_a_ring_is_the_usual_one_where_it_does_not_matter() -> None:
    assert [each.size for each in Connect(rings=1, size=4, packed=True).simpler()] == [64]


def test_what_is_simple_has_nothing_simpler() -> None:
    for simple in (Kick(ring=0), Send(request=1, flags=1), Connect(rings=1, size=64, packed=False)):
        assert not list(simple.simpler())
