"""Several campaigns side by side, each in a process of its own with a back-end of its own."""

import multiprocessing
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from vhostd.errors import SetupError
from vhostd.fuzz.campaign import Campaign, Plan, Progress
from vhostd.fuzz.findings import Found

Hear = Callable[[Progress | Found], None]


def run_jobs(plan: Plan, hear: Hear) -> None:
    """Runs all cases of a plan. `hear` gets each finding, and now and then what all of them have done so far.

    Raises SetupError if a back-end cannot be started.
    """
    context = multiprocessing.get_context("fork")
    with ExitStack() as stack:
        done: dict[Connection, Progress] = {}
        processes: dict[Connection, BaseProcess] = {}
        for job in range(plan.jobs):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_run, args=(plan._replace(job=job), theirs), daemon=True)
            process.start()
            stack.callback(process.join)
            stack.callback(process.terminate)
            theirs.close()
            processes[ours] = process
            done[stack.enter_context(ours)] = Progress()
        running = set(done)
        while running:
            for ready in wait(running):
                assert isinstance(ready, Connection)
                try:
                    said = ready.recv()
                except EOFError:
                    running.remove(ready)
                    processes[ready].join()
                    if processes[ready].exitcode:
                        raise SetupError("a job has failed") from None
                    continue
                if isinstance(said, SetupError):
                    raise said
                if isinstance(said, Progress):
                    done[ready] = said
                    said = sum(done.values(), start=Progress())
                hear(said)


def _run(plan: Plan, told: Connection) -> None:
    """One job, in its process."""
    try:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            Campaign(plan, Path(folder), told.send).run()
    except SetupError as error:
        told.send(error)
    except (KeyboardInterrupt, BrokenPipeError):
        pass
