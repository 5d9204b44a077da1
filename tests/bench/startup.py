"""What it costs to start the programs, to keep them, and to end them.

    .venv/bin/python -m tests.bench.startup [--rounds N] [--json FILE] [--environment FOLDER]

It measures what a user has: the project installed from this checkout, not in editable mode, with its modules
compiled, into an environment of its own under build/. Another one can be named.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.bench.measure import Figure, alternate, save, table
from tests.programs import Program, connected, environment, get_features

CHECKOUT = Path(__file__).parents[2]
ENVIRONMENT = CHECKOUT / "build" / "startup"
ROUNDS = 41
MIB = 1024  # in KiB
PASS = ("python -c pass", "pass")
LOOP = ('python -c "import asyncio, uvloop"', "import asyncio, uvloop")


def install(folder: Path) -> None:
    """Makes the environment, with this checkout as it is now in it."""
    print(f"installing into {folder}", file=sys.stderr)
    if not (folder / "bin/python").exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [str(folder / "bin/python"), "-m", "pip", "install", "--quiet", str(CHECKOUT)]
    subprocess.run(pip, check=True, env=environment())  # and what it depends on
    subprocess.run([*pip, "--force-reinstall", "--no-deps"], check=True, env=environment())


def run_time(command: Sequence[str]) -> float:
    """Milliseconds from exec until the command has ended."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment(), cwd="/")
    return (time.perf_counter() - start) * 1000


def reply_time(command: Sequence[str]) -> float:
    """Milliseconds from exec with --fd until the reply to GET_FEATURES is there."""
    start = time.perf_counter()
    with connected(command, stderr=subprocess.DEVNULL, cwd="/") as (_, sock):
        get_features(sock)
        return (time.perf_counter() - start) * 1000


@contextmanager
def serving(command: Sequence[str]) -> Iterator[Program]:
    """A program that serves an idle front-end."""
    with connected(command, stderr=subprocess.DEVNULL, cwd="/") as (program, sock):
        get_features(sock)
        yield program


def resident(command: Sequence[str]) -> float:
    """MiB of resident memory."""
    with serving(command) as program:
        return program.resident() / MIB


def exit_time(command: Sequence[str]) -> float:
    """Milliseconds from SIGTERM until the program has ended."""
    with serving(command) as program:
        return program.stop() * 1000


def figures(name: str, command: Sequence[str], python: str, rounds: int) -> list[Figure]:
    """The four figures of a program."""
    subjects: dict[str, Callable[[], float]] = {
        PASS[0]: lambda: run_time([python, "-c", PASS[1]]),
        LOOP[0]: lambda: run_time([python, "-c", LOOP[1]]),
        "capabilities": lambda: run_time([command[0], "--print-capabilities"]),
        "reply": lambda: reply_time(command),
        "resident": lambda: resident(command),
        "exit": lambda: exit_time(command),
    }
    for measure in subjects.values():  # the first time, files are read from the disk
        measure()
    medians = alternate(subjects, rounds)
    return [
        Figure(name, "`--print-capabilities`", "ms", medians["capabilities"], medians[PASS[0]], limit=2),
        Figure(name, "exec to GET_FEATURES reply", "ms", medians["reply"], medians[LOOP[0]], limit=1.5),
        Figure(name, "idle resident memory", "MiB", medians["resident"], limit=30),
        Figure(name, "SIGTERM to exit", "ms", medians["exit"], limit=100),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of which medians are taken: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    parser.add_argument("--environment", type=Path, metavar="FOLDER", help="measure this one, as it is")
    options = parser.parse_args()
    if options.environment is None:
        install(ENVIRONMENT)
    binaries = (options.environment or ENVIRONMENT).resolve() / "bin"
    with tempfile.TemporaryDirectory() as folder:
        programs = {
            "vhost-user-rng": [],
            "vhost-user-gpu": [],
            "vhost-user-blk": ["--ram=16M"],
            "vhost-user-input": [f"--event-socket={os.path.join(folder, 'events')}"],
        }
        found = []
        for name, arguments in programs.items():
            command = [str(binaries / name), *arguments]
            found += figures(name, command, str(binaries / "python"), options.rounds)
    print(table(found))
    print(f"\nBaselines: {PASS[0]}, {LOOP[0]}. Medians of {options.rounds} alternating rounds.")
    if options.json is not None:
        save(options.json, found, rounds=options.rounds)


if __name__ == "__main__":
    main()
