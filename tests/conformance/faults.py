"""Planted faults: each makes one of our programs break one clause, so that its check can be seen to fail.

A file of `mutants/` has those of a group of checks:

    @breaks("NEG-1", "the masks differ")
    def features_that_change() -> None:
        \"""Each answer has other features.\"""
        replace(Negotiation, "get_features", lambda get, self, empty: U64(next(MASKS)))

To see what a check says of it:

    vhostctl check --only NEG-1 --type rng --exec \\
        '.venv/bin/python -m tests.conformance.mutant negotiation.features_that_change --socket-path={socket}'
"""

from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).with_name("mutants")
PATIENCE = 10.0  # seconds
SILENCE = 1.5  # seconds of patience for a program that does not answer, and is not meant to


class Fault(NamedTuple):
    """`plant` makes the `program` fail the `check`, with a verdict that has these words."""

    check: str
    reason: str
    program: str
    options: str  # of the program, beside those that it always gets
    patience: float
    plant: Callable[[], None]

    @property
    def name(self) -> str:
        """Its group's file and its function."""
        return f"{self.plant.__module__.rpartition('.')[2]}.{self.plant.__name__}"

    def __str__(self) -> str:
        return f"{self.check}-{self.name}"


def breaks(
    check: str, reason: str, *, program: str = "rng", options: str = "", patience: float = PATIENCE
) -> Callable[[Callable[[], None]], Fault]:
    """Makes a fault of a function that plants it. `program` is the type of a device."""
    return lambda plant: Fault(check, reason, program, options, patience, plant)


def replace(owner: object, name: str, new: Callable[..., Any]) -> None:
    """Has `new` called in place of a method or a function; it gets the one before as its first argument.

    Of compiled classes nothing can be replaced, but they can be derived from.
    """
    before = getattr(owner, name)

    def call(*arguments: Any, **keywords: Any) -> Any:
        return new(before, *arguments, **keywords)

    setattr(owner, name, call)


def faults_of(group: str) -> Iterator[Fault]:
    """The faults in a file of `mutants/`."""
    module = import_module(f"tests.conformance.mutants.{group}")
    return (each for each in vars(module).values() if isinstance(each, Fault))


def all_faults() -> list[Fault]:
    """Those of all files."""
    return [each for path in sorted(FOLDER.glob("*.py")) for each in faults_of(path.stem)]


def fault(name: str) -> Fault:
    """The one of this name; KeyError if there is none."""
    return {each.name: each for each in faults_of(name.partition(".")[0])}[name]
