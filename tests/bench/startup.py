"""What it costs to start the programs, to keep them, and to end them; and others' programs, to start them.

    .venv/bin/python -m tests.bench.startup [--rounds N] [--json FILE] [--environment FOLDER] [--peer PATH]

It measures what a user has: the project installed from this checkout, not in editable mode, with its modules
compiled, into an environment of its own under build/. Another one can be named.

The peers are programs of other projects (peers.py), in C and in Rust, as far as they are installed here. All
takes place in the same rounds, so that everything can be compared with everything.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.bench.measure import Figure, Measure, alternate, save, table
from tests.bench.peers import Peer, find, reply_time
from tests.programs import Program, connected, environment, get_features

CHECKOUT = Path(__file__).parents[2]
ENVIRONMENT = CHECKOUT / "build" / "startup"
ROUNDS = 41
MIB = 1024  # in KiB
PASS = ("python -c pass", "pass")
PROBE = "`--print-capabilities`"
LAUNCH = "exec to GET_FEATURES reply"
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


def of_program(name: str, command: Sequence[str]) -> dict[str, Measure]:
    """What is measured of one of ours."""
    return {
        f"{name}: probe": lambda: run_time([command[0], "--print-capabilities"]),
        f"{name}: launch": lambda: reply_time(command),
        f"{name}: resident": lambda: resident(command),
        f"{name}: exit": lambda: exit_time(command),
    }


def of_peer(peer: Peer) -> dict[str, Measure]:
    """What is measured of another one."""
    measures: dict[str, Measure] = {f"{peer}: probe": lambda: run_time(peer.probe)}
    if (launch := peer.launch) is not None:
        measures[f"{peer}: launch"] = lambda: launch(peer.command)
    return measures


def figures(name: str, medians: Mapping[str, float]) -> list[Figure]:
    """The four figures of one of ours."""
    probe, launch = medians[f"{name}: probe"], medians[f"{name}: launch"]
    return [
        Figure(name, PROBE, "ms", probe, medians[PASS[0]], limit=1.5),
        Figure(name, LAUNCH, "ms", launch, medians[LOOP[0]], limit=1.0),
        Figure(name, "idle resident memory", "MiB", medians[f"{name}: resident"], limit=30),
        Figure(name, "SIGTERM to exit", "ms", medians[f"{name}: exit"], limit=100),
    ]


def figures_of_peer(peer: Peer, medians: Mapping[str, float]) -> list[Figure]:
    """Those that there are of another one, beside the same baselines."""
    baselines = {f"{peer}: probe": (PROBE, PASS[0]), f"{peer}: launch": (LAUNCH, LOOP[0])}
    return [
        Figure(str(peer), what, "ms", medians[name], medians[baseline])
        for name, (what, baseline) in baselines.items()
        if name in medians
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of which medians are taken: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    parser.add_argument("--environment", type=Path, metavar="FOLDER", help="measure this one, as it is")
    parser.add_argument(
        "--peer", type=Path, metavar="PATH", action="append", default=[], help="where a peer is instead"
    )
    options = parser.parse_args()
    if options.environment is None:
        install(ENVIRONMENT)
    binaries = (options.environment or ENVIRONMENT).resolve() / "bin"
    python = str(binaries / "python")
    peers, missing = find(options.peer)
    with tempfile.TemporaryDirectory() as folder:
        arguments = {
            "vhost-user-rng": [],
            "vhost-user-console": [],
            "vhost-user-gpu": [],
            "vhost-user-blk": ["--ram=16M"],
            "vhost-user-input": [f"--event-socket={os.path.join(folder, 'events')}"],
        }
        subjects: dict[str, Measure] = {
            PASS[0]: lambda: run_time([python, "-c", PASS[1]]),
            LOOP[0]: lambda: run_time([python, "-c", LOOP[1]]),
        }
        for name, further in arguments.items():
            subjects |= of_program(name, [str(binaries / name), *further])
        for peer in peers:
            subjects |= of_peer(peer)
        for measure in subjects.values():  # the first time, files are read from the disk
            measure()
        medians = alternate(subjects, options.rounds)
    found = [figure for name in arguments for figure in figures(name, medians)]
    found += [figure for peer in peers for figure in figures_of_peer(peer, medians)]
    print(table(found))
    for peer in missing:
        print(f"\nNot measured: {peer}: there is no {peer.path} (Debian's package {peer.package}).")
    print(f"\nBaselines: {PASS[0]}, {LOOP[0]}. Medians of {options.rounds} alternating rounds.")
    if options.json is not None:
        save(options.json, found, rounds=options.rounds, missing=[str(peer) for peer in missing])


if __name__ == "__main__":
    main()
