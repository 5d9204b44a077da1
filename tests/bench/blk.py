"""What a disk costs: vhost-user-blk beside qemu-storage-daemon, both behind qemu-img bench.

    .venv/bin/python -m tests.bench.blk [--rounds N] [--quick] [--one-core] [--json FILE] [--plot FILE]
                                        [--program COMMAND]

Each has a disk of its own, a file of 256 MiB that is all in the page cache; `cached` goes through that,
`direct` past it.
qemu-storage-daemon runs with and without an iothread, and with each way to do its I/O that the mode lets it
have; the baseline is in every line the one that was fastest there, and for CPU the one that took least.

With --one-core everybody shares a single one, front-end included. Then nobody waits for a core that sleeps to
wake up, which in a virtual machine may take longer than all the rest, and what counts is the work itself.

"null disk" is a disk in our event loop that ends every request without looking at it, in a line of Python:
faster is only what does not come to Python. A request's cost for the front-end, which is the same program for
all, has its own table.

CPU is all that the back-end's process has used while a front-end was connected, threads of the kernel that
work for it included; the front-end's has its start in it, some milliseconds.
"""

import argparse
import os
import re
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from tests.bench.measure import Figure, alternate, cpu_time, save, table
from tests.blk.newer_qemu import qemu_img, storage_daemon, vhost_user
from tests.programs import Program, executable, listens_at

NAME = "vhost-user-blk"
POLLING = f"{NAME}, polling"
NULL = "null disk"
CHECKOUT = Path(__file__).parents[2]
SIZE = 256 << 20
KIB = 1 << 10
MIB = 1024  # in KiB
ROUNDS = 7
SECONDS = 0.5  # that a run is to take
MOST = 400_000  # requests of a run
POLL_US = 50
COMPLETED = re.compile(r"Run completed in ([\d.]+) seconds")


@dataclass(frozen=True)
class Job:
    """What a front-end does."""

    mode: str
    size: int  # bytes of a request
    depth: int  # requests at a time
    writing: bool = False

    def __str__(self) -> str:
        what = "writes" if self.writing else "reads"
        return f"{self.mode}, {self.size // KIB} KiB {what}, depth {self.depth}"

    @property
    def least(self) -> float:
        """How many times as fast as the baseline it should be."""
        if self.mode == "direct":
            return 1.0
        return 1.5 if self.depth == 1 else 2.0


def jobs(mode: str) -> list[Job]:
    """All jobs of a mode."""
    small = [Job(mode, 4 * KIB, depth, writing) for writing in (False, True) for depth in (1, 8, 32, 64)]
    return [*small, Job(mode, 128 * KIB, 32)]


@dataclass
class Cost:
    """What requests have cost until now, in seconds of CPU."""

    requests: int = 0
    cpu: float = 0.0
    own: float = 0.0  # the front-end's

    @property
    def per_million(self) -> float:
        """Seconds of the back-end's per million requests."""
        return self.cpu / self.requests * 1e6

    @property
    def own_per_million(self) -> float:
        return self.own / self.requests * 1e6


@dataclass
class Server:
    """A running back-end, and what it has cost."""

    program: Program
    path: Path
    costs: dict[Job, Cost] = field(default_factory=dict)

    def run(self, job: Job, count: int) -> float:
        """Requests per second of a front-end with so many requests."""
        cpu, own = cpu_time(self.program.pid), children()
        seconds = bench(self.path, job, count)
        cost = self.costs.setdefault(job, Cost())
        cost.requests += count
        cost.cpu += cpu_time(self.program.pid) - cpu
        cost.own += children() - own
        return count / seconds


def children() -> float:
    """Seconds of CPU that the children which have ended have used."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def bench(path: Path, job: Job, count: int) -> float:
    """Seconds that qemu-img takes for so many requests."""
    arguments = ["-c", str(count), "-d", str(job.depth), "-s", str(job.size)]
    command = qemu_img(
        "bench", *arguments, *(["-w"] if job.writing else []), "--image-opts", vhost_user(path)
    )
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = COMPLETED.search(done.stdout)
    if done.returncode or not found:
        raise SystemExit(f"{shlex.join(command)}: {done.stdout}{done.stderr}")
    return max(float(found[1]), 0.001)


class Bench:
    """All back-ends of a mode; ended when the stack is closed."""

    def __init__(self, stack: ExitStack, folder: Path, mode: str, *, ours: Sequence[str]) -> None:
        self.mode = mode
        self._stack = stack
        self._folder = folder
        self.servers: dict[str, Server] = {}
        self._start_ours(ours)
        self.peers = self._start_peers()

    def _start_ours(self, program: Sequence[str]) -> None:
        direct = ["--cache=direct"] if self.mode == "direct" else []
        self._start(NAME, [*program, f"--blk-file={self._disk()}", *direct])
        if self.mode == "cached":
            if len(os.sched_getaffinity(0)) > 1:  # on the front-end's own core it would poll for nothing
                self._start(POLLING, [*program, f"--blk-file={self._disk()}", f"--poll-us={POLL_US}"])
            self._start(NULL, [sys.executable, "-m", "tests.blk.null_disk"])

    def _start(self, name: str, command: Sequence[str]) -> None:
        path = self._path()
        self._add(name, path, [*command, f"--socket-path={path}", "--log-level=warning"])

    def _start_peers(self) -> list[str]:
        """Starts QEMU's, in every way; returns their names."""
        direct = self.mode == "direct"
        names = []
        for aio in ("native", "io_uring") if direct else ("threads", "io_uring"):
            for iothread in (False, True):
                path = self._path()
                name = f"QEMU, {aio}, iothread" if iothread else f"QEMU, {aio}"
                command = storage_daemon(self._disk(), path, direct=direct, aio=aio, iothread=iothread)
                self._add(name, path, command)
                names.append(name)
        return names

    def _disk(self) -> Path:
        """A disk of its own for the next one, without holes, on the disk as well as in the page cache."""
        path = self._path().with_suffix(".img")
        with path.open("wb") as file:
            for _ in range(SIZE >> 20):
                file.write(os.urandom(1 << 20))
            file.flush()
            os.fsync(file.fileno())
        return path

    def _path(self) -> Path:
        return self._folder / f"{self.mode}-{len(self.servers)}.sock"

    def _add(self, name: str, path: Path, command: Sequence[str]) -> None:
        program = self._stack.enter_context(Program(command, stderr=2, cwd=str(CHECKOUT)))
        program.until(lambda _: listens_at(path))
        self.servers[name] = Server(program, path)

    def rates(self, job: Job, rounds: int, seconds: float) -> dict[str, float]:
        """The median of everybody's requests per second."""
        servers = {name: server for name, server in self.servers.items() if takes_part(name, job)}
        count = self._count(job, seconds)
        return alternate({name: partial(server.run, job, count) for name, server in servers.items()}, rounds)

    def _count(self, job: Job, seconds: float) -> int:
        """How many requests take about this time; everybody has had its first run then."""
        names = [name for name in self.servers if takes_part(name, job)]
        times = {name: bench(self.servers[name].path, job, 1000) for name in names}
        usual = statistics.median(times.values()) / 1000
        return min(max(int(seconds / usual) // 1000 * 1000, 1000), MOST)


def takes_part(name: str, job: Job) -> bool:
    """Whether it is measured here: polling is for those who wait for each request."""
    return name != POLLING or job.depth == 1


@dataclass
class Results:
    """What was measured in one mode."""

    mode: str
    rates: dict[Job, dict[str, float]]
    costs: dict[str, dict[Job, Cost]]
    resident: dict[str, float]  # MiB
    peers: list[str]

    def figures(self) -> list[Figure]:
        """Ours beside QEMU's."""
        found = []
        for job, rates in self.rates.items():
            fastest = max(rates[name] for name in self.peers)
            cheapest = min(self.costs[name][job].per_million for name in self.peers)
            cpu = self.costs[NAME][job].per_million
            found.append(Figure(NAME, str(job), "requests/s", rates[NAME], fastest, least=job.least))
            found.append(Figure(NAME, f"{job}: CPU", "s/million", cpu, cheapest, limit=0.5))
            if POLLING in rates:
                found.append(Figure(POLLING, str(job), "requests/s", rates[POLLING], fastest, least=3.0))
            if NULL in rates:
                found.append(Figure(NULL, str(job), "requests/s", rates[NULL], fastest))
        least = min(self.resident[name] for name in self.peers)
        found.append(Figure(NAME, f"{self.mode}: resident memory", "MiB", self.resident[NAME], least))
        return found

    def grids(self) -> str:
        """Everybody's figures, as Markdown."""
        names = list(self.costs)
        costs = {job: {name: self.costs[name].get(job) for name in names} for job in self.rates}
        return "\n\n".join(
            [
                grid(f"{self.mode}: requests/s", names, self.rates, "{:,.0f}"),
                grid(
                    f"{self.mode}: CPU, s per million",
                    names,
                    cells(costs, lambda cost: cost.per_million),
                    "{:.1f}",
                ),
                grid(
                    f"{self.mode}: the front-end's CPU, s per million",
                    names,
                    cells(costs, lambda cost: cost.own_per_million),
                    "{:.1f}",
                ),
            ]
        )


def cells(
    costs: Mapping[Job, Mapping[str, Cost | None]], what: Callable[[Cost], float]
) -> dict[Job, dict[str, float]]:
    """One property of all costs that there are."""
    return {
        job: {name: what(cost) for name, cost in row.items() if cost is not None}
        for job, row in costs.items()
    }


def grid(title: str, names: Sequence[str], rows: Mapping[Job, Mapping[str, float]], form: str) -> str:
    """A Markdown table with a column for each program."""
    lines = [f"| {title} | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for job, row in rows.items():
        values = [form.format(row[name]) if name in row else "" for name in names]
        lines.append(f"| {job} | {' | '.join(values)} |")
    return "\n".join(lines)


def measure(folder: Path, mode: str, program: Sequence[str], rounds: int, seconds: float) -> Results:
    """All jobs of a mode."""
    with ExitStack() as stack:
        machines = Bench(stack, folder, mode, ours=program)
        rates = {}
        for job in jobs(mode):
            rates[job] = machines.rates(job, rounds, seconds)
            print(
                f"{job}: {', '.join(f'{name} {rate:,.0f}' for name, rate in rates[job].items())}",
                file=sys.stderr,
            )
        servers = machines.servers
        return Results(
            mode,
            rates,
            {name: server.costs for name, server in servers.items()},
            {name: server.program.resident() / MIB for name, server in servers.items()},
            machines.peers,
        )


# --- The chart ------------------------------------------------------------------------------------------

OURS, THEIRS, INK, PAPER = "#2f6fb7", "#c9c9c9", "#222222", "#ffffff"
ROW, LEFT, BAR, GAP, SCALE = 34, 300, 520, 130, 2


def plot(path: Path, results: Sequence[Results]) -> None:
    """Draws requests per second: ours over QEMU's fastest, in each job as parts of the faster one."""
    rows = [(job, rates, result.peers) for result in results for job, rates in result.rates.items()]
    width, height = LEFT + BAR + GAP, 50 + ROW * len(rows)
    image = Image.new("RGB", (width * SCALE, height * SCALE), PAPER)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(13 * SCALE)

    def text(x: float, y: float, words: str) -> None:
        draw.text((x * SCALE, y * SCALE), words, fill=INK, font=font)

    def bar(y: float, size: float, color: str) -> None:
        draw.rectangle([LEFT * SCALE, y * SCALE, (LEFT + BAR * size) * SCALE, (y + 12) * SCALE], fill=color)

    text(10, 12, "Requests per second")
    draw.rectangle([LEFT * SCALE, 14 * SCALE, (LEFT + 12) * SCALE, 26 * SCALE], fill=OURS)
    text(LEFT + 18, 12, NAME)
    draw.rectangle([(LEFT + 150) * SCALE, 14 * SCALE, (LEFT + 162) * SCALE, 26 * SCALE], fill=THEIRS)
    text(LEFT + 168, 12, "qemu-storage-daemon, the fastest way")
    for number, (job, rates, peers) in enumerate(rows):
        y = 44 + number * ROW
        ours, theirs = rates[NAME], max(rates[name] for name in peers)
        most = max(ours, theirs)
        text(10, y + 4, str(job))
        bar(y, ours / most, OURS)
        bar(y + 13, theirs / most, THEIRS)
        text(LEFT + BAR + 10, y - 2, f"{ours:,.0f}  ({ours / theirs:.2f}x)")
        text(LEFT + BAR + 10, y + 12, f"{theirs:,.0f}")
    image.quantize(16).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of which medians are taken: %(default)s")
    parser.add_argument("--quick", action="store_true", help="short runs, and few: to see that it works")
    parser.add_argument("--one-core", action="store_true", help="let all of them share a core")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them there, as a PNG")
    parser.add_argument("--program", metavar="COMMAND", default=executable(NAME), help="default: %(default)s")
    parser.add_argument("--modes", nargs="+", choices=("cached", "direct"), default=("cached", "direct"))
    parser.add_argument("--folder", default="/tmp", help="where the disk lies: %(default)s")
    options = parser.parse_args()
    if options.one_core:
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])  # the children's as well
    rounds, seconds = (3, SECONDS / 5) if options.quick else (options.rounds, SECONDS)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        command = shlex.split(options.program)
        results = [measure(Path(folder), mode, command, rounds, seconds) for mode in options.modes]
    found = [figure for result in results for figure in result.figures()]
    print(table(found))
    print(f"\nBaseline: the best of qemu-storage-daemon's. Medians of {rounds} alternating rounds.\n")
    print("\n\n".join(result.grids() for result in results))
    if options.plot is not None:
        plot(options.plot, results)
    if options.json is not None:
        everything = {str(job): rates for result in results for job, rates in result.rates.items()}
        save(options.json, found, rounds=rounds, rates=everything)


if __name__ == "__main__":
    main()
