"""The leak checks, each seen to fail in an inner run of pytest."""

import os
import sys

import pytest

pytest_plugins = ["pytester"]

INNER = """
import asyncio, logging, mmap, os, pytest, socket, sys, time
from vhostd.wire.fds import Fd

@pytest.fixture(scope="module", params=[1, 2])
def kept_open():
    with open("/dev/null"):
        yield

async def fault():
    raise ValueError("a fault")

def good_module_fixture(kept_open):
    os.close(os.dup(0))

def good_things_are_closed(run_async):
    async def main():
        task = asyncio.create_task(asyncio.Event().wait())
        await asyncio.sleep(0)
        task.cancel()
    run_async(main)
    Fd(os.dup(0)).close()
    mmap.mmap(-1, 4096).close()

def good_turn_that_takes_long(run_async, caplog):
    async def main():
        time.sleep(0.11)  # asyncio would say so from 0.1 s on
    run_async(main)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]

def bad_fd():
    os.dup(0)

def bad_owned_fd():
    Fd(os.dup(0))

def bad_owned_fd_in_a_cycle():
    fd = [Fd(os.dup(0))]
    fd.append(fd)

def bad_socket():
    socket.socket()

def bad_shared_mapping():
    sys.kept = mmap.mmap(-1, 4096)

def bad_pending_task(run_async):
    async def main():
        asyncio.create_task(asyncio.Event().wait())
    run_async(main)

def bad_exception_of_a_task(run_async):
    async def main():
        asyncio.create_task(fault())
        await asyncio.sleep(0)
    run_async(main)

def bad_exception_of_a_callback(run_async):
    async def main():
        asyncio.get_running_loop().call_soon(int, "a fault")
    run_async(main)

def bad_log_line():
    logging.getLogger().debug("%d", "x")
"""


def test_all_leaks_are_reported_and_nothing_else(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    pytester.makepyfile(INNER)
    options = ("-p", "tests.conftest", "-o", "python_functions=good_* bad_*")
    lines = pytester.runpytest_subprocess("-rA", *options).outlines
    verdicts: dict[str, set[str]] = {}
    for line in lines:
        if line.startswith(("PASSED ", "FAILED ", "ERROR ")):
            verdict, where = line.split()[:2]
            verdicts.setdefault(where.partition("::")[2], set()).add(verdict)
    good = {name for name, verdict in verdicts.items() if verdict == {"PASSED"}}
    assert good == {name for name in verdicts if name.startswith("good_")}
    assert len(verdicts) == 18  # those with a loop or a fixture twice
