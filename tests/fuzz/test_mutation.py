"""Fields of payloads, and numbers that are put there."""

from random import Random

import pytest

from vhostd.fuzz.mutation import Mutation, spans
from vhostd.fuzz.operation import Await, Case, Connect, Kick, Send
from vhostd.vhost_user.messages import (
    SET_VRING_ADDR,
    SET_VRING_NUM,
    ConfigSpace,
    Inflight,
    Iotlb,
    MemoryTable,
    VringAddr,
    VringState,
)
from vhostd.wire.rows import Empty


@pytest.mark.parametrize(
    ("layout", "size", "fields"),
    [
        (VringState, 8, [(0, 4), (4, 4)]),
        (VringAddr, 40, [(0, 4), (4, 4), (8, 8), (16, 8), (24, 8), (32, 8)]),
        (Iotlb, 32, [(0, 8), (8, 8), (16, 8), (24, 1), (25, 1), (26, 6)]),
        (Inflight, 24, [(0, 8), (8, 8), (16, 2), (18, 2), (20, 4)]),
        (MemoryTable, 8 + 32, [(0, 4), (4, 4), (8, 8), (16, 8), (24, 8), (32, 8)]),
        (ConfigSpace, 12 + 9, [(0, 4), (4, 4), (8, 4), (12, 8)]),
        (Empty, 0, []),
    ],
)
def test_the_fields_of_each_payload_are_known(layout: type, size: int, fields: list[tuple[int, int]]) -> None:
    assert spans(layout, size) == fields


def test_one_or_two_fields_are_changed_and_no_byte_between() -> None:
    valid = Send(request=SET_VRING_ADDR.request, flags=9, payload=bytes(40))
    for seed in range(200):
        payload = Mutation(Random(seed)).message(valid).payload
        changed = [at for at, width in spans(VringAddr, 40) if any(payload[at : at + width])]
        assert len(payload) == 40
        assert len(changed) <= 2


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_a_number_fits_its_field(width: int) -> None:
    mutation = Mutation(Random(1))
    numbers = [mutation.number(width, near=5) for _ in range(2000)]
    assert all(0 <= number < 1 << 8 * width for number in numbers)
    assert {0, 1, 4, 6, (1 << 8 * width) - 1} <= {*numbers}


def test_a_case_of_the_corpus_is_changed_in_all_ways() -> None:
    kick = Kick(ring=0)
    case: Case = (
        Connect(rings=1, size=64, packed=False),
        Send(request=SET_VRING_NUM.request, flags=9, payload=bytes(8)),
        *[kick] * 20,
    )
    made = [Mutation(Random(seed)).case(case, (Await(),) * 30) for seed in range(200)]
    assert any(len(each) < len(case) for each in made)
    assert any(each.count(kick) > 20 for each in made)
    assert any(Await() in each for each in made)
    assert any(isinstance(o, Send) and any(o.payload) for each in made for o in each)
    assert all(made)
