"""What a ring costs for a request, in each format, beside a C loop that does the least that virtio asks for.

    .venv/bin/python -m tests.bench.ring [--rounds N] [--json FILE]

A round is a ring full of requests. The driver makes them available, and the device serves them: only that is
timed. `served` is what a shortcut pays, `popped` what a device in Python pays that does nothing. It needs a
compiler, and fetches Cython.
"""

import argparse
import ctypes
import importlib.util
import os
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.bench.measure import Figure, Measure, alternate, save, table
from vhostd.ring import DirtyLog, GuestMemory, Region, Ring, Shortcut, ring_format
from vhostd.ring.driver import driver_format

CHECKOUT = Path(__file__).parents[2]
SOURCES = Path(__file__).parent
BUILD = CHECKOUT / "build/bench"
INDIRECT_DESC, EVENT_IDX, PACKED = 1 << 28, 1 << 29, 1 << 34
SIZE = 256  # descriptors
MEMORY = 1 << 20
TABLES, DATA = 0x20000, 0x80000  # guest addresses
ROUNDS = 2000
# A request as a disk has it: what is wanted, room for data, and for a status.
BUFFERS = [(DATA, 16, False), (DATA + 4096, 4096, True), (DATA + 8192, 1, True)]
SLACK = 1.05  # of a limit that is "no slower": the machine is noisy


class Kind(NamedTuple):
    """A sort of ring, and of requests in it."""

    packed: bool
    indirect: bool
    record: bool = False
    log: bool = False

    def __str__(self) -> str:
        words = ["packed" if self.packed else "split", "indirect" if self.indirect else "direct"]
        words += [word for word, has in (("inflight", self.record), ("log", self.log)) if has]
        return ", ".join(words)

    @property
    def features(self) -> int:
        return INDIRECT_DESC | EVENT_IDX | (PACKED if self.packed else 0)


class Bench:
    """A driver, and memory that its device is in."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.memory, self.host = shared(MEMORY)
        self.driver: Any = driver_format(kind.features)(self.memory, 0, SIZE, features=kind.features)
        self.count = SIZE if kind.indirect else SIZE // len(BUFFERS)

    def fill(self) -> None:
        """Makes as many requests available as there is room for."""
        for i in range(self.count):
            self.driver.add(BUFFERS, indirect=TABLES + 64 * i if self.kind.indirect else None)

    def empty(self) -> None:
        """Takes them all back."""
        for _ in range(self.count):
            assert self.driver.used() is not None
        assert self.driver.used() is None

    def ring(self) -> Ring:
        """A device's half of it."""
        form = ring_format(self.kind.features)
        windows = [
            self.memory.guest(addr, size)
            for addr, size in zip(
                (self.driver.desc_addr, self.driver.avail_addr, self.driver.used_addr),
                form.footprint(SIZE),
                strict=True,
            )
        ]
        area = form.INFLIGHT(shared(form.INFLIGHT.footprint(SIZE))[0], 0, SIZE) if self.kind.record else None
        desc, avail, used = windows
        ring = form(
            SIZE,
            desc,
            avail,
            used,
            self.memory,
            features=self.kind.features,
            base=self.driver.base,
            inflight=area,
        )
        if self.kind.log:
            ring.log_writes(DirtyLog(shared(4096)[0], 4096))
        return ring

    def timed(self, serve: Callable[[], object]) -> Measure:
        """Nanoseconds for a request, of a device that serves all that there is."""

        def measure() -> float:
            self.fill()
            begin = time.perf_counter_ns()
            serve()
            elapsed = time.perf_counter_ns() - begin
            self.empty()
            return elapsed / self.count

        return measure


def shared(size: int) -> tuple[GuestMemory, int]:
    """Zeroed guest memory from address 0 on, and where this process has it."""
    fd = os.memfd_create("bench")
    os.ftruncate(fd, size)
    memory = GuestMemory([Region(fd, guest_addr=0, user_addr=0, size=size)])
    os.close(fd)
    view = (ctypes.c_char * size).from_buffer(memory.guest(0, size))
    return memory, ctypes.addressof(view)


def served(kind: Kind, instant: Shortcut) -> Measure:
    bench = Bench(kind)
    ring = bench.ring()
    nobody: Any = None  # the shortcut pushes nothing later
    return bench.timed(lambda: ring.serve(instant, nobody, 2 * SIZE, lambda: None))


def popped(kind: Kind) -> Measure:
    bench = Bench(kind)
    ring = bench.ring()

    def serve() -> None:
        while (chain := ring.pop()) is not None:
            ring.push(chain)

    return bench.timed(serve)


def least(kind: Kind, loops: ctypes.CDLL) -> Measure:
    bench = Bench(kind)
    at, wrap = ctypes.c_uint16(0), ctypes.c_uint16(1)
    base = ctypes.c_void_p(bench.host)
    desc, avail, used = (
        ctypes.c_void_p(bench.host + addr)
        for addr in (bench.driver.desc_addr, bench.driver.avail_addr, bench.driver.used_addr)
    )
    if kind.packed:
        return bench.timed(lambda: loops.least_packed(base, desc, SIZE, ctypes.byref(at), ctypes.byref(wrap)))
    return bench.timed(lambda: loops.least_split(base, desc, avail, used, SIZE, ctypes.byref(at)))


# --- Built for this alone -----------------------------------------------------------------------------------


def run(*command: object, **environment: str) -> None:
    subprocess.run(
        [str(word) for word in command], cwd=CHECKOUT, env={**os.environ, **environment}, check=True
    )


def instant() -> Shortcut:
    """A shortcut in native code."""
    tools, source, library = BUILD / "tools", BUILD / "instant.c", BUILD / "instant.so"
    if not (tools / "Cython").exists():
        run(sys.executable, "-m", "pip", "install", "--quiet", "--target", tools, "Cython>=3.0")
    run(sys.executable, "-m", "cython", SOURCES / "instant.pyx", "-o", source, PYTHONPATH=str(tools))
    include = sysconfig.get_path("include")
    run("gcc", "-O2", "-shared", "-fPIC", f"-I{include}", "-Ivhostd/ring", source, "-o", library)
    spec = importlib.util.spec_from_file_location("instant", library)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made: Shortcut = module.Instant()
    return made


def loops() -> ctypes.CDLL:
    library = BUILD / "least.so"
    run("gcc", "-O2", "-shared", "-fPIC", SOURCES / "least.c", "-o", library)
    return ctypes.CDLL(str(library))


def figures(rounds: int) -> Sequence[Figure]:
    BUILD.mkdir(parents=True, exist_ok=True)
    shortcut, in_c = instant(), loops()
    plain = [Kind(packed, indirect) for packed in (False, True) for indirect in (False, True)]
    extra = [Kind(packed, True, record, not record) for packed in (False, True) for record in (True, False)]
    measures: dict[str, Measure] = {f"least {kind}": least(kind, in_c) for kind in plain}
    measures |= {f"served {kind}": served(kind, shortcut) for kind in (*plain, *extra)}
    measures |= {f"popped {kind}": popped(kind) for kind in plain}
    medians = alternate(measures, rounds)
    found = [Figure("in C", str(kind), "ns", medians[f"least {kind}"]) for kind in plain]
    found += [
        Figure("served", str(kind), "ns", medians[f"served {kind}"], medians[f"least {kind}"])
        for kind in plain
    ]
    found += [
        Figure("served", str(kind), "ns", medians[f"served {kind}"], medians[f"served {Kind(*kind[:2])}"])
        for kind in extra
    ]
    for how in ("served", "popped"):
        for indirect in (False, True):
            packed, split = (medians[f"{how} {Kind(each, indirect)}"] for each in (True, False))
            what = f"{Kind(packed=True, indirect=indirect)}, beside split"
            found.append(Figure(how, what, "ns", packed, split, limit=SLACK))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of which medians are taken: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    options = parser.parse_args()
    found = figures(options.rounds)
    print(table(found))
    if options.json is not None:
        save(options.json, found, rounds=options.rounds)


if __name__ == "__main__":
    main()
