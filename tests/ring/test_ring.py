"""What every ring does, whatever its format: chains put back, chains published together, and who is told."""

from collections.abc import Iterator

import pytest

from tests.ring.machine import BOTH, DATA, EVENT_IDX, PACKED, Machine
from vhostd.ring import Chain, Outcome, Ring, Shortcut, ring_format

ONE = [(DATA, 1, True)]


formats = pytest.mark.parametrize("form", [0, PACKED], ids=["split", "packed"])


@pytest.fixture(params=[0, PACKED], ids=["split", "packed"])
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    machine = Machine(8, features=BOTH | request.param)
    yield machine
    machine.close()


def taken(machine: Machine, count: int) -> list[Chain]:
    """Adds and pops so many chains."""
    for _ in range(count):
        machine.driver.add(ONE)
    return [machine.pop() for _ in range(count)]


def used(machine: Machine) -> list[int]:
    """The heads that came back since this was last asked."""
    return [found[0] for found in iter(machine.driver.used, None)]


def test_a_ring_has_a_format() -> None:
    assert issubclass(ring_format(0), Ring)
    assert ring_format(BOTH).footprint(1) == (16, 8, 14)
    with pytest.raises(NotImplementedError):
        Ring.footprint(1)
    with pytest.raises(NotImplementedError):
        Ring.check_size(1)


def test_ring_itself_is_none(machine: Machine) -> None:
    window = machine.memory.guest(DATA, 1)
    with pytest.raises(NotImplementedError):
        Ring(8, window, window, window, machine.memory, features=0, base=0)


# --- Put back ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", [0, 65535])
def test_what_is_put_back_is_popped_again(base: int) -> None:
    machine = Machine(8, base=base)
    chains = taken(machine, 3)
    heads = [chain.head for chain in chains]
    for chain in reversed(chains[1:]):
        machine.ring.put_back(chain)
    assert (machine.ring.base, machine.ring.in_flight) == ((base + 1) % 65536, 1)
    assert not machine.ring.is_empty
    assert [machine.pop().head, machine.pop().head] == heads[1:]
    assert machine.ring.pop() is None
    machine.close()


def test_a_full_ring_is_put_back_whole(machine: Machine) -> None:
    chains = taken(machine, 8)
    heads = [chain.head for chain in chains]
    for chain in reversed(chains):
        machine.ring.put_back(chain)
    assert machine.ring.arm()
    again = [machine.pop() for _ in range(8)]
    assert [chain.head for chain in again] == heads
    machine.ring.push_all(again)
    assert used(machine) == heads


def test_only_the_newest_can_be_put_back(machine: Machine) -> None:
    first, second, third = taken(machine, 3)
    with pytest.raises(ValueError, match="not the chain that was popped last"):
        machine.ring.put_back(second)
    machine.ring.push(third)
    with pytest.raises(ValueError, match="not the chain that was popped last"):
        machine.ring.put_back(second)
    with pytest.raises(ValueError, match="not in flight"):
        machine.ring.put_back(third)
    assert machine.ring.in_flight == 2
    machine.ring.push_all([second, first])


def test_what_was_put_back_is_not_the_device_s(machine: Machine) -> None:
    (chain,) = taken(machine, 1)
    machine.ring.put_back(chain)
    for call in (machine.ring.push, machine.ring.put_back, machine.ring.drop):
        with pytest.raises(ValueError, match="not in flight"):
            call(chain)
    other = Machine(8)
    (foreign,) = taken(other, 1)
    with pytest.raises(ValueError, match="not in flight"):
        machine.ring.put_back(foreign)
    other.close()


# --- All at once ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", [0, 65533])
def test_chains_that_are_pushed_together_are_seen_in_their_order(base: int) -> None:
    machine = Machine(8, base=base)
    chains = taken(machine, 8)
    chains[2].write(b"x")
    order = [chains[i] for i in (2, 0, 7, 5)]
    machine.ring.push_all(iter(order))
    assert machine.driver.used() == (chains[2].head, 1)
    assert used(machine) == [chain.head for chain in order[1:]]
    assert machine.ring.in_flight == 4
    machine.close()


def test_nothing_at_once_is_nothing(machine: Machine) -> None:
    assert machine.ring.push_all([]) is False
    assert used(machine) == []


@pytest.mark.parametrize("wrong", ["twice", "pushed", "none", "other"])
def test_all_are_pushed_or_none(machine: Machine, wrong: str) -> None:
    first, second, third = taken(machine, 3)
    machine.ring.push(third)
    assert used(machine) == [third.head]
    batch: list[object] = [first, {"twice": first, "pushed": third, "none": None, "other": b""}[wrong]]
    with pytest.raises((ValueError, TypeError)):
        machine.ring.push_all(batch)  # type: ignore[arg-type]
    assert used(machine) == []
    assert machine.ring.in_flight == 2
    machine.ring.push_all([first, second])


def test_a_driver_that_waits_for_one_of_a_batch_is_called() -> None:
    machine = Machine(8, features=EVENT_IDX)
    chains = taken(machine, 4)
    machine.driver.set_used_event(2)  # the third
    assert machine.ring.push_all(chains)
    assert machine.ring.must_call()
    assert not machine.ring.must_call()
    machine.close()


# --- Who is told ------------------------------------------------------------------------------------------


class Notes:
    """Writes down what a ring tells."""

    def __init__(self, ring: Ring) -> None:
        ring.watch(self.popped, self.pushed, self.put_back)
        self.seen: list[tuple[str, int]] = []

    def popped(self, chain: Chain) -> None:
        self.seen.append(("popped", chain.head))

    def pushed(self, chain: Chain) -> None:
        self.seen.append(("pushed", chain.head))

    def put_back(self, chain: Chain) -> None:
        self.seen.append(("put back", chain.head))


class Answering(Shortcut):
    """Ends each chain but the last of four; written in Python, as a shortcut may be."""

    def __init__(self) -> None:
        self.served = 0
        self.submitted = 0

    def serve(self, queue: object, chain: Chain) -> int:
        self.served += 1
        chain.write(b"!")
        return Outcome.DONE if self.served < 4 else Outcome.LEFT

    def submit(self) -> None:
        self.submitted += 1


class NoQueue:
    """What a shortcut that begins nothing needs no more of."""

    def push(self, chain: Chain) -> None:
        raise NotImplementedError


def test_a_watcher_sees_every_chain(machine: Machine) -> None:
    notes = Notes(machine.ring)
    first, second = taken(machine, 2)
    machine.ring.put_back(second)
    second = machine.pop()
    machine.ring.push(first)
    machine.ring.push_all([second])
    heads = [("popped", 0), ("popped", 1), ("put back", 1), ("popped", 1), ("pushed", 0), ("pushed", 1)]
    assert notes.seen == heads
    machine.ring.watch(None, None, None)
    machine.ring.push_all(taken(machine, 2))
    assert notes.seen == heads


def test_a_watcher_sees_what_a_shortcut_serves() -> None:
    machine = Machine(8, features=0)
    notes, shortcut = Notes(machine.ring), Answering()
    calls: list[int] = []

    def tell() -> None:
        calls.append(machine.driver.used_index)

    for _ in range(5):
        machine.driver.add(ONE)
    left = machine.ring.serve(shortcut, NoQueue(), 64, tell)
    assert left is not None
    assert left.head == 3
    assert [what for what, _ in notes.seen] == ["popped", "pushed"] * 3 + ["popped"]
    assert calls == [1, 3]
    assert shortcut.submitted == 1
    machine.close()


# --- IN_ORDER -----------------------------------------------------------------------------------------------

IN_ORDER = 1 << 35


@formats
def test_what_is_pushed_early_waits_for_those_before_it(form: int) -> None:
    machine = Machine(features=BOTH | IN_ORDER | form)
    heads = [machine.driver.add([(DATA, 1, True)]) for _ in range(4)]
    chains = [machine.pop() for _ in range(4)]
    ring = machine.ring
    assert not ring.push(chains[2])
    assert not ring.push(chains[1])
    assert (used(machine), ring.in_flight, ring.must_call()) == ([], 4, False)
    with pytest.raises(ValueError, match="is not in flight"):
        ring.push(chains[1])
    with pytest.raises(ValueError, match="is not in flight"):
        ring.push_all([chains[0], chains[2]])
    ring.push(chains[0])
    assert (used(machine), ring.in_flight, ring.must_call()) == (heads[:3], 1, True)
    ring.push(chains[3])
    assert used(machine) == heads[3:]


@formats
def test_a_batch_comes_in_order(form: int) -> None:
    machine = Machine(features=BOTH | IN_ORDER | form)
    heads = [machine.driver.add([(DATA, 1, True)]) for _ in range(4)]
    chains = [machine.pop() for _ in range(4)]
    machine.ring.push_all([chains[2], chains[0], chains[1]])
    assert used(machine) == heads[:3]
    machine.ring.push_all([chains[3]])
    assert (used(machine), machine.ring.in_flight) == (heads[3:], 0)


@formats
def test_what_waits_for_its_turn_is_given_up_with_the_rest(form: int) -> None:
    machine = Machine(features=BOTH | IN_ORDER | form)
    for _ in range(3):
        machine.driver.add([(DATA, 1, True)])
    chains = [machine.pop() for _ in range(3)]
    machine.ring.push(chains[1])
    machine.ring.give_up()
    assert machine.ring.in_flight == 2
    for chain in (chains[2], chains[0]):
        machine.ring.drop(chain)
    assert (machine.ring.in_flight, used(machine)) == (0, [])


@formats
def test_order_after_something_was_put_back(form: int) -> None:
    machine = Machine(features=BOTH | IN_ORDER | form)
    heads = [machine.driver.add([(DATA, 1, True)]) for _ in range(3)]
    first, second = machine.pop(), machine.pop()
    machine.ring.put_back(second)
    machine.ring.push(first)
    again, third = machine.pop(), machine.pop()
    machine.ring.push(third)
    assert used(machine) == heads[:1]
    machine.ring.push(again)
    assert used(machine) == heads[1:]


@formats
@pytest.mark.parametrize("dropped", ["before", "after"])
def test_nothing_waits_for_a_chain_that_was_dropped(form: int, dropped: str) -> None:
    machine = Machine(features=BOTH | IN_ORDER | form)
    heads = [machine.driver.add([(DATA, 1, True)]) for _ in range(4)]
    first, second, third, fourth = (machine.pop() for _ in range(4))
    if dropped == "after":
        machine.ring.push(second)
        assert (used(machine), machine.ring.in_flight) == ([], 4)
        del first
    else:
        del first
        machine.ring.push(second)
    machine.ring.push_all(())
    assert (used(machine), machine.ring.in_flight) == (heads[1:2], 2)
    del second
    machine.ring.push(fourth)
    assert used(machine) == []
    machine.ring.push(third)
    assert (used(machine), machine.ring.in_flight) == (heads[2:], 0)
