"""What a check is: a clause, and the function that observes it."""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import NamedTuple

from vhostd.conformance.trial import Trial
from vhostd.conformance.verdict import Level
from vhostd.wire.rows import Bit


class Needs(NamedTuple):
    """What a back-end must have for a check of it: else the check is skipped."""

    protocol: tuple[Bit, ...] = ()  # protocol features that it must offer
    features: tuple[Bit, ...] = ()  # and virtio features
    lacks: tuple[Bit, ...] = ()  # protocol features that it must not offer
    kinds: tuple[str, ...] = ()  # types of devices, as in vhost-user.json; any if empty
    program: bool = False  # a command that starts it, not only its socket
    exchange: bool = False  # a type of device for which a valid request is known
    destructive: bool = False  # it may change what is stored behind the device


NOTHING = Needs()
Observation = Callable[[Trial], Awaitable[None]]


class Check(NamedTuple):
    """A clause, and the function that observes it, whose docstring says what is done."""

    id: str  # such as MSG-3; never given to another clause
    level: Level
    section: str  # of the specification
    gist: str  # of its sentence, in our words
    needs: Needs
    observe: Observation

    @property
    def how(self) -> str:
        """What is done to observe the clause."""
        return " ".join((self.observe.__doc__ or "").split())


class Group:
    """Checks that belong together, in one file, whose docstring argues what is not clear."""

    def __init__(self, prefix: str, title: str, specification: str = "vhost-user") -> None:
        self.prefix = prefix
        self.title = title
        self.specification = specification
        self.checks: list[Check] = []

    def __iter__(self) -> Iterator[Check]:
        return iter(self.checks)

    def must(
        self, number: int, section: str, gist: str, needs: Needs = NOTHING
    ) -> Callable[[Observation], Observation]:
        """Makes a function the check of a clause that every back-end has to keep."""
        return self._clause(Level.MUST, number, section, gist, needs)

    def should(
        self, number: int, section: str, gist: str, needs: Needs = NOTHING
    ) -> Callable[[Observation], Observation]:
        """As `must`, for a clause that a back-end may break for a good reason."""
        return self._clause(Level.SHOULD, number, section, gist, needs)

    def advice(
        self, number: int, section: str, gist: str, needs: Needs = NOTHING
    ) -> Callable[[Observation], Observation]:
        """As `must`, for what no specification asks, and users are glad of."""
        return self._clause(Level.ADVICE, number, section, gist, needs)

    def _clause(
        self, level: Level, number: int, section: str, gist: str, needs: Needs
    ) -> Callable[[Observation], Observation]:
        def add(observe: Observation) -> Observation:
            self.checks.append(Check(f"{self.prefix}-{number}", level, section, gist, needs, observe))
            return observe

        return add


def matching(groups: Sequence[Group], wanted: Sequence[str], kind: str = "") -> list[Check]:
    """The checks whose id, or whose group, is wanted, in the groups' order; all if nothing is named.

    Those of other devices than `kind` are left out, if that is known.
    """
    names = {name.upper() for name in wanted}
    return [
        check
        for group in groups
        for check in group
        if (not names or check.id in names or group.prefix in names)
        and not (kind and check.needs.kinds and kind not in check.needs.kinds)
    ]
