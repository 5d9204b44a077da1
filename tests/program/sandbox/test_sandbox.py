"""What a device that a guest has taken over can still do, and what a host must have for that."""

import asyncio
import os
import resource
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.program.sandbox.hostile import BESIDE, DEEDS, FREE, GRANTED, POSTCOPY
from tests.programs import (
    PROGRAMS,
    Program,
    connect,
    connected,
    executable,
    get_features,
    listening,
    needed_options,
    notified,
)
from vhostd.frontend import Frontend, Queue, SharedMemory
from vhostd.vhost_user.messages import GPU_SET_SOCKET
from vhostd.wire.fds import Fd
from vhostd.wire.rows import Empty

CHECKOUT = Path(__file__).parents[3]
# What the driver sends by queue 1, where queue 0 is for what comes from the host.
SENT = {"console": b"hello", "net": bytes(72), "vsock": bytes(44)}
DENIALS = {"EPERM", "EACCES", "ENOSYS"}


@pytest.fixture(params=PROGRAMS)
def command(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    return [executable(request.param), *needed_options(request.param, tmp_path)]


@contextmanager
def hostile(folder: Path, *options: str) -> Iterator[tuple[Program, socket.socket]]:
    """The hostile program, its victims, and the front-end's end of its connection."""
    victim = folder / "victim"
    victim.write_text("precious")
    with (
        socket.socket(socket.AF_UNIX) as server,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams,
    ):
        server.bind(str(folder / "server"))
        server.listen()
        datagrams.bind(str(folder / "server.datagrams"))
        command = [sys.executable, "-m", "tests.program.sandbox.hostile", f"--victim={victim}", *options]
        command.append(f"--server={folder / 'server'}")
        with connected(command, cwd=str(CHECKOUT)) as (program, sock):
            yield program, sock
            program.stop()


def outcomes(sock: socket.socket, deeds: Sequence[str]) -> dict[str, str]:
    """What came of the deeds that a guest ordered, one after the other."""

    async def order(queue: Queue) -> dict[str, str]:
        return {deed: (await queue.request(deed.encode(), room=200)).decode() for deed in deeds}

    async def main() -> dict[str, str]:
        frontend = Frontend(sock)
        await frontend.negotiate()
        with closing(SharedMemory(1 << 20)) as memory:
            await frontend.share(memory)
            with closing(await frontend.start(memory)) as queue:
                return await asyncio.wait_for(order(queue), 60)

    sock.setblocking(False)
    return asyncio.run(main())


def test_nothing_of_use_to_a_guest_is_left(tmp_path: Path) -> None:
    with hostile(tmp_path) as (_, sock):
        found = outcomes(sock, list(DEEDS))
    assert {deed: outcome for deed, outcome in found.items() if outcome not in DENIALS} == {}
    assert sorted(tmp_path.iterdir()) == [
        tmp_path / name for name in ("server", "server.datagrams", "victim")
    ]
    assert (tmp_path / "victim").read_text() == "precious"


def test_what_is_tried_would_work_without_it(tmp_path: Path) -> None:
    """Else the test above would say nothing. What needs root, or could not be undone, is left out."""
    deeds = [
        "read a public file", "list a folder", "look at a process", "write to a file", "make a file",
        "make a folder", "make a socket", "make a link", "make a symbolic link", "open a device", "fork",
        "start a program", "spawn a program", "kill the parent", "open a process", "TCP", "UDP", "netlink",
        "execute what was written", "make what was written executable later",
        "execute what is written elsewhere", "execute a file", "huge pages", "connect to a server",
        "send to a server", "send raw to a server", "send to a server by a pair", "TCP by sendto",
        "TCP by sendmsg", "have a process signalled", "read a file beside the libraries", "raise a limit",
        "be dumped", "a socket's filter", "become another", "ioctl of the same type",
        "ioctl of the same type and another number", "flush", "call that is not granted",
    ]  # fmt: skip
    with hostile(tmp_path, "--sandbox=none") as (_, sock):
        found = outcomes(sock, deeds)
    assert found == dict.fromkeys(deeds, "done")


def test_what_serving_takes_still_works(tmp_path: Path) -> None:
    with hostile(tmp_path) as (_, sock):
        assert outcomes(sock, list(FREE)) == dict.fromkeys(FREE, "done")


def test_a_program_that_offers_postcopy_has_a_userfaultfd_for_that(tmp_path: Path) -> None:
    with hostile(tmp_path, "--offer=default,pagefault") as (_, sock):
        found = outcomes(sock, list(POSTCOPY))
    assert found.pop("userfaultfd of own faults") == "done"
    assert set(found.values()) == {"EPERM"}


def test_what_is_granted_is_and_nothing_beside_it(tmp_path: Path) -> None:
    granted = tmp_path / "granted"
    granted.mkdir()
    with hostile(tmp_path, f"--written={granted}") as (_, sock):
        found = outcomes(sock, [*GRANTED, *DEEDS])
    assert {deed for deed, outcome in found.items() if outcome == "done"} == set(GRANTED)


def test_no_file_but_the_socket_s_is_removed(tmp_path: Path) -> None:
    path, victim = tmp_path / "vhost.sock", tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "empty").mkdir()
    command = [sys.executable, "-m", "tests.program.sandbox.hostile", f"--victim={victim}", "--server=none"]
    with listening(command, path, cwd=str(CHECKOUT)) as program:
        with connect(path) as sock:
            found = outcomes(sock, list(BESIDE))
        assert {deed: outcome for deed, outcome in found.items() if outcome not in DENIALS} == {}
        program.stop()
    assert sorted(tmp_path.iterdir()) == [tmp_path / "empty", victim]
    assert victim.read_text() == "precious"


def test_each_program_gives_up_what_it_can(command: list[str]) -> None:
    with connected(command) as (program, sock):
        assert get_features(sock)
        assert (program.status("NoNewPrivs"), program.status("Seccomp")) == ("1", "2")
        for kind in ("CapEff", "CapPrm", "CapInh", "CapAmb"):
            assert int(program.status(kind), 16) == 0
        assert resource.prlimit(program.pid, resource.RLIMIT_CORE) == (0, 0)
        assert resource.prlimit(program.pid, resource.RLIMIT_NOFILE)[0] >= 4096
        program.stop()


def test_none_leaves_all_as_it_was(command: list[str]) -> None:
    with connected([*command, "--sandbox=none"]) as (program, sock):
        assert get_features(sock)
        assert (program.status("NoNewPrivs"), program.status("Seccomp")) == ("0", "0")
        own = next(line for line in Path("/proc/self/status").read_text().splitlines() if "CapEff" in line)
        assert program.status("CapEff") == own.split()[1]
        assert resource.prlimit(program.pid, resource.RLIMIT_CORE) == resource.getrlimit(resource.RLIMIT_CORE)
        program.stop()


def test_threads_are_in_it_as_well(tmp_path: Path) -> None:
    with hostile(tmp_path) as (program, sock):
        assert outcomes(sock, ["stay in a thread"]) == {"stay in a thread": "done"}
        states = [(task / "status").read_text() for task in (program.proc / "task").iterdir()]
        assert len(states) == 2
        assert all("Seccomp:\t2\n" in state and "NoNewPrivs:\t1\n" in state for state in states)


def test_it_begins_before_anybody_is_served(command: list[str], tmp_path: Path) -> None:
    path = tmp_path / "vhost.sock"
    with notified() as manager, listening(command, path, env={"NOTIFY_SOCKET": manager.name}) as program:
        manager.until("READY=1")  # an abstract socket, which it still reaches
        assert program.status("Seccomp") == "2"
        with connect(path) as sock:
            assert get_features(sock)
        program.stop()
    assert not path.exists()


def test_all_that_serving_takes_is_imported_with_the_device(command: list[str], tmp_path: Path) -> None:
    """Later its folder may be hidden: somebody else's, of whom root without its capabilities is no more."""
    if "gpu" in Path(command[0]).name:
        command.append(f"--screenshot={tmp_path / 'screen.png'}")
    path = tmp_path / "socket"
    env = {"PYTHONPROFILEIMPORTTIME": "1"}

    async def serve_all_of_it() -> None:
        with closing(await Frontend.connect(str(path))) as frontend, closing(SharedMemory(1 << 16)) as memory:
            await frontend.negotiate()
            await frontend.share(memory)
            if "gpu" in Path(command[0]).name:
                ours, theirs = socket.socketpair()
                with ours, Fd(theirs.detach()) as fd:
                    await frontend.call(GPU_SET_SOCKET, Empty(), fd)
            if sent := SENT.get(PROGRAMS[Path(command[0]).name]):
                with closing(await frontend.start(memory, 1)) as queue:
                    await queue.request(sent)
                return
            with closing(await frontend.start(memory)) as queue:
                await queue.request(bytes(24), room=24)

    with notified() as manager:
        env["NOTIFY_SOCKET"] = manager.name
        with listening(command, path, env=env) as program:
            manager.until("READY=1")
            for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
                program.send(number)
            if (
                "input" not in Path(command[0]).name
            ):  # whose first queue is for events, of which there are none
                asyncio.run(asyncio.wait_for(serve_all_of_it(), 60))
            program.send()
            status, lines = program.ends()
    imported = [line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")]
    assert (status, imported[-1]) == (0, f"{Path(command[0]).name.replace('-', '_')}.device")


def test_a_socket_in_a_folder_that_root_may_not_write_to_is_left_behind(tmp_path: Path) -> None:
    """Without its capabilities root is a user like others; the next start replaces the file."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    path = folder / "vhost.sock"
    for _ in range(2):
        with listening([executable("vhost-user-rng")], path) as program:
            os.chown(folder, 65534, 65534)
            folder.chmod(0o755)
            program.send()
            status, lines = program.ends()
        assert (status, lines[-1].endswith(f"{path} is left behind: Permission denied")) == (0, True)
        assert path.is_socket()


# --- A host that cannot ---------------------------------------------------------------------------------

# Runs a program on a kernel that seems to lack a system call.
WITHOUT = """
import ctypes, os, sys
library = ctypes.CDLL("libseccomp.so.2")
library.seccomp_init.restype = ctypes.c_void_p
context = ctypes.c_void_p(library.seccomp_init(0x7FFF0000))
number = library.seccomp_syscall_resolve_name(sys.argv[1].encode())
assert not library.seccomp_rule_add(context, 0x00050000 | int(sys.argv[2]), number, 0)
assert not library.seccomp_load(context)
os.execv(sys.argv[3], sys.argv[3:])
"""


@pytest.mark.parametrize(
    ("name", "number", "what"),
    [
        ("landlock_create_ruleset", 38, "Landlock: Function not implemented"),
        ("landlock_create_ruleset", 95, "Landlock: Operation not supported"),  # built in, not switched on
        ("landlock_restrict_self", 7, "Landlock: Argument list too long"),
        ("seccomp", 38, "seccomp: "),
        ("capset", 1, "capabilities: Operation not permitted"),
        ("prctl", 1, "limits: Operation not permitted"),
    ],
)
def test_a_kernel_that_lacks_something_is_told_of(
    command: list[str], tmp_path: Path, name: str, number: int, what: str
) -> None:
    path = tmp_path / "vhost.sock"
    launcher = [sys.executable, "-c", WITHOUT, name, str(number), *command, f"--socket-path={path}"]
    with Program(launcher) as program:
        status, lines = program.ends()
    errors = [line for line in lines if "WARNING: --stream=" not in line]  # that nobody listens there yet
    assert (status, len(errors)) == (1, 1), lines
    assert what in errors[0]
    assert "--sandbox=none" in errors[0]
    assert list(tmp_path.iterdir()) == []
    with connected([*launcher[:-1], "--sandbox=none"]) as (program, sock):
        assert get_features(sock)
        program.stop()


def refusal(code: str) -> str:
    """What a process says that enters the sandbox; the code has names of what it takes."""
    whole = (
        "from vhostd.errors import SetupError; from vhostd.host.grants import Grants; "
        "from vhostd.program.sandbox import confine, seccomp\n"
        f"try: {code}\nexcept SetupError as error: print(error)"
    )
    with Program([sys.executable, "-c", whole], stdout=-1, cwd=str(CHECKOUT)) as program:
        said, _ = program.process.communicate()
    text: str = said.decode()
    return text


def test_a_host_without_libseccomp_is_told_of() -> None:
    said = refusal("seccomp.LIBRARY = 'libnone.so.2'; confine(Grants())")
    assert said.startswith("no sandbox here: seccomp: libnone.so.2: cannot open shared object file")
    assert "--sandbox=none" in said


def test_a_grant_of_a_system_call_that_nobody_knows_is_told_of() -> None:
    said = refusal("confine(Grants(system_calls=('getsid', 'openatt')))")
    assert said == "a grant: libseccomp knows no system call 'openatt'\n"


def test_a_grant_of_another_architecture_s_system_call_has_no_effect() -> None:
    assert refusal("confine(Grants(system_calls=('arm_sync_file_range', 'send')))") == ""
