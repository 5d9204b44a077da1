"""Programs that are started, found, and ended, whatever they are like."""

import asyncio
import os
import signal
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.conftest import Run
from tests.programs import executable
from vhostd.errors import SetupError, UsageError
from vhostd.frontend import Backend, RngDriver, SharedMemory

RNG = executable("vhost-user-rng")
WAYS = [f"{RNG} --socket-path={{socket}}", f"{RNG} --fd={{listener}}", f"{RNG} --fd={{fd}}"]


def python(code: str, *arguments: str) -> list[str]:
    """A program of a few lines."""
    return [sys.executable, "-c", code, *arguments]


SILENT = python("import signal; signal.pause()", "{socket}")
# As Rust's programs that serve several front-ends, which add a number to the path.
NUMBERED = python(
    "import os, sys; os.execv(sys.argv[1], [sys.argv[1], f'--socket-path={sys.argv[2]}0'])", RNG, "{socket}"
)
# Its child holds its output, and lives on.
PARENT = python(
    "import os, signal, sys\nif not os.fork():\n signal.pause()\nos.execv(sys.argv[1], [*sys.argv[1:]])",
    RNG,
    "--socket-path={socket}",
)


async def is_served(backend: Backend) -> bool:
    """Whether a front-end gets random bytes."""
    with closing(await backend.connect()) as frontend, closing(SharedMemory(1 << 20)) as memory:
        await frontend.negotiate()
        await frontend.share(memory)
        with closing(await RngDriver.start(frontend, memory)) as driver:
            return any(await driver.read(64))


@pytest.mark.parametrize(
    "command", [*WAYS, NUMBERED, PARENT], ids=["path", "listener", "fd", "number", "parent"]
)
def test_every_way_to_give_a_socket(command: str | list[str], run_async: Run) -> None:
    async def main() -> None:
        async with Backend(command) as backend:
            assert await is_served(backend)
            pid, folder = backend.pid, backend.folder
        assert not Path(f"/proc/{pid}").exists()
        assert not folder.exists()

    run_async(main)


def test_a_program_is_killed_and_starts_again(run_async: Run) -> None:
    async def main() -> None:
        async with Backend(WAYS[0]) as backend:
            assert await is_served(backend)
            assert backend.status is None
            await backend.kill()
            assert backend.status == -signal.SIGKILL
            await backend.restart()
            assert await is_served(backend)
            assert await is_served(backend)
            assert await backend.stop() == 0
            await backend.kill()  # there is nobody

    run_async(main)


def test_one_connection_is_one(run_async: Run) -> None:
    async def main() -> None:
        async with Backend(WAYS[2]) as backend:
            with closing(await backend.connect()) as frontend:
                await frontend.negotiate()
                with pytest.raises(UsageError, match="single connection"):
                    await backend.connect()
            assert await backend.ended() == 0
            await backend.restart()
            assert await is_served(backend)

    run_async(main)


@pytest.mark.parametrize(
    ("code", "complaint"),
    [
        ("raise SystemExit('I need a ' + 'file')", "has ended with status 1, and has said: I need a file"),
        ("import os; os.abort()", "was ended by SIGABRT"),
        ("for n in range(99): print(n)", "has ended with status 0, and has said: 96 / 97 / 98"),
    ],
)
def test_a_program_that_ends_at_once_says_why(code: str, complaint: str, run_async: Run) -> None:
    async def main() -> None:
        async with Backend(python(code, "{socket}")) as backend:
            with pytest.raises(SetupError, match=f"{complaint}$"):
                await backend.connect()

    run_async(main)


def test_a_program_that_makes_no_socket(run_async: Run) -> None:
    async def main() -> None:
        async with Backend(SILENT, patience=0.05) as backend:
            with pytest.raises(SetupError, match=r"made no socket for 0\.05 s$"):
                await backend.connect()
            with pytest.raises(TimeoutError):
                await backend.ended()
            backend.patience = 20
            backend.send(signal.SIGTERM)
            assert await backend.ended() == -signal.SIGTERM

    run_async(main)


def test_a_program_that_listens_and_never_answers(run_async: Run) -> None:
    code = "import signal, socket, sys; sock = socket.socket(socket.AF_UNIX); sock.bind(sys.argv[1]); "
    deaf = python(f"{code} sock.listen(); signal.pause()", "{socket}")

    async def main() -> None:
        async with Backend(deaf) as backend:
            with closing(await backend.connect()) as frontend:
                frontend.patience = 0.05
                with pytest.raises(TimeoutError):
                    await frontend.negotiate()

    run_async(main)


def test_of_what_it_says_the_end_is_kept(run_async: Run) -> None:
    talker = python("print('x' * 300000); print('the ' + 'end')", "{socket}")

    async def main() -> None:
        async with Backend(talker) as backend:
            assert await backend.ended() == 0
            assert len(backend.output) == 1 << 16
            assert backend.output.endswith("the end\n")

    run_async(main)


def test_a_command_that_makes_no_sense(run_async: Run) -> None:
    async def main() -> None:
        with pytest.raises(UsageError, match="in place of its socket"):
            Backend(RNG)
        with pytest.raises(SetupError, match="/none/such: No such file or directory"):
            async with Backend("/none/such --fd={fd}"):
                pass
        with pytest.raises(UsageError, match="async with"):
            _ = Backend(WAYS[0]).pid

    run_async(main)


def test_environment_and_folder(run_async: Run, tmp_path: Path) -> None:
    shell = "echo $WORD; pwd; echo {folder}; : {socket}"

    async def main() -> None:
        async with Backend(["sh", "-c", shell], env={"WORD": "word"}, cwd=tmp_path) as backend:
            assert await backend.ended() == 0
            assert backend.output.splitlines() == ["word", os.fspath(tmp_path), os.fspath(backend.folder)]

    run_async(main)


def test_the_loop_may_be_gone(tmp_path: Path) -> None:
    """A test that fails in the middle leaves no program behind."""

    async def main() -> int:
        async with Backend(WAYS[0]) as backend:
            raise KeyError(backend.pid)

    with pytest.raises(KeyError) as raised:
        asyncio.run(main())
    assert not Path(f"/proc/{raised.value.args[0]}").exists()
