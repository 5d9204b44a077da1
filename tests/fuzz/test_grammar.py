"""Cases: the same from the same seed, and of what was asked for."""

import pytest

from vhostd.fuzz.grammar import Grammar, Scope
from vhostd.fuzz.operation import RingOperation, Send, Write, to_json
from vhostd.fuzz.traits import Traits
from vhostd.vhost_user.messages import GET_VRING_BASE, REQUESTS

TRAITS = Traits(features=0x5_7400_7E4E, protocol=0x19_B22B, queues=4)
CASES = range(20)


def made(seed: int, scope: Scope | None = None, **more: object) -> list[bytes]:
    grammar = Grammar(seed, TRAITS, scope or Scope(), **more)  # type: ignore[arg-type]  # passed on
    return [to_json(grammar.case(number)) for number in CASES]


def test_the_same_seed_makes_the_same_cases_byte_for_byte() -> None:
    assert made(1) == made(1)
    assert made(1) != made(2)


def test_a_case_does_not_depend_on_those_before_it() -> None:
    assert to_json(Grammar(1, TRAITS, Scope()).case(7)) == made(1)[7]


def test_with_a_corpus_every_other_case_comes_of_it() -> None:
    grammar = Grammar(3, TRAITS, Scope())
    corpus = [grammar.case(number) for number in range(4)]
    with_corpus = made(1, corpus=corpus)
    assert with_corpus[::2] == made(1)[::2]
    assert not set(with_corpus[1::2]) & set(made(1))
    assert with_corpus == made(1, corpus=corpus)


def test_all_messages_and_all_operations_are_used() -> None:
    grammar = Grammar(1, TRAITS, Scope())
    cases = [operation for number in range(150) for operation in grammar.case(number)]
    agreed = {row.name for row in REQUESTS.values() if row.exists(TRAITS.protocol)}
    assert agreed <= {each.name for each in cases if isinstance(each, Send)}
    assert {each.op for each in cases} == {
        *("connect", "send", "await", "renew", "descriptor", "offer", "head", "jump", "wish", "kick"),
        *("write", "resize", "tell", "stranger", "disconnect"),
    }


def test_hostile_rings_alone_have_valid_messages_alone() -> None:
    grammar = Grammar(1, TRAITS, Scope(messages=False))
    cases = [operation for number in CASES for operation in grammar.case(number)]
    assert all(each.size is None for each in cases if isinstance(each, Send))
    assert any(isinstance(each, RingOperation) for each in cases)


def test_hostile_messages_alone_stop_no_ring_to_begin_it_again() -> None:
    grammar = Grammar(1, TRAITS, Scope(rings=False))
    names = [operation.name for number in CASES for operation in grammar.case(number)]
    assert GET_VRING_BASE.name in names
    assert "renew" not in names


@pytest.mark.parametrize("name", ["resize", "SET_LOG_BASE"])
def test_what_is_known_to_be_fatal_can_be_left_out(name: str) -> None:
    grammar = Grammar(1, TRAITS, Scope(without=frozenset({name})))
    assert name not in {operation.name for number in CASES for operation in grammar.case(number)}


def test_requests_of_one_type_are_of_that_type() -> None:
    grammar = Grammar(1, TRAITS, Scope(messages=False, types=("rng",)))
    long = [
        each
        for number in CASES
        for each in grammar.case(number)
        if isinstance(each, Write) and len(each.data) > 128
    ]
    assert not long  # an entropy device's driver writes nothing but tables
