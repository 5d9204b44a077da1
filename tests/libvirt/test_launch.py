"""vhost-user-gpu as libvirt starts and stops it: what it is given, and what it leaves alone."""

import fcntl
import grp
import os
import pwd
import re
import signal
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from tests.libvirt.domain import VIDEO, Domain, document
from tests.libvirt.host import Host, HostProblem, Process, wait_until
from tests.libvirt.libvirtd import DESCRIPTIONS, Libvirtd
from tests.programs import executable

USER = "libvirt-qemu"
PROGRAM = executable("vhost-user-gpu")
RENDERER = "vhost_user_gpu.virgl.renderer"
SOON = 1.0  # seconds in which a domain shall be destroyed
HUNG = 5.0  # what no busy machine needs for that; libvirt gives a program that hangs ten
ERROR = 3  # in syslog
OWN_EVENTFDS = 2  # at most, of the event loop; all others come from the front-end
FLOCK = struct.Struct("@hh4xqqi4x")  # struct flock


def launch(libvirtd: Libvirtd, name: str, *, paused: bool = True) -> Domain:
    """A domain without a guest, whose processors do not even run if `paused`."""
    return Domain(libvirtd, name, document(name, VIDEO), paused=paused)


@pytest.fixture(scope="module")
def the_domain(libvirtd: Libvirtd) -> Iterator[Domain]:
    with launch(libvirtd, "launched") as domain:
        yield domain


@pytest.fixture(scope="module")
def program(the_domain: Domain) -> Process:
    """Our program, which has answered QEMU by now: else there were no domain."""
    return the_domain.program


def programs(host: Host) -> list[Process]:
    """All our display programs in the host that were launched, not only asked for their capabilities."""
    launched = f"{PROGRAM} --fd="
    return [process for process in host.processes() if launched in " ".join(process.argv())]


def locked(path: Path) -> bool:
    """Whether somebody holds a POSIX lock on a file."""
    with path.open("rb+") as file:
        lock = fcntl.fcntl(file, fcntl.F_GETLK, FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    return bool(FLOCK.unpack(lock)[0] != fcntl.F_UNLCK)


def test_it_is_started_as_its_description_says(program: Process) -> None:
    interpreter, path, option = program.argv()
    assert path == PROGRAM
    assert re.fullmatch(r"--fd=\d+", option)
    assert Path(interpreter).name.startswith("python")


def test_it_runs_as_libvirts_user_with_no_privileges_and_no_home(program: Process) -> None:
    user, group = pwd.getpwnam(USER).pw_uid, grp.getgrnam(USER).gr_gid
    assert program.status("Uid").split() == [str(user)] * 4
    assert program.status("Gid").split() == [str(group)] * 4
    assert int(program.status("CapEff"), 16) == int(program.status("CapPrm"), 16) == 0
    assert program.environment().keys() & {"HOME", "USER", "XDG_RUNTIME_DIR"} == set()
    assert os.readlink(program.proc / "cwd") == "/"


def test_3d_is_asked_for_and_runs_as_that_user(libvirtd: Libvirtd) -> None:
    """The renderer, and what starts it, are other processes. They end with the domain."""
    video = VIDEO.replace("accel2d='no'", "accel2d='no' accel3d='yes'")
    with Domain(libvirtd, "accelerated", document("accelerated", video), paused=True) as domain:
        assert "--virgl" in domain.program.argv()
        helpers = [each for each in libvirtd.host.processes() if RENDERER in each.argv()]
        user = [str(pwd.getpwnam(USER).pw_uid)] * 4
        assert [each.status("Uid").split() for each in helpers] == [user] * 2
    wait_until(
        lambda: not any(RENDERER in each.argv() for each in libvirtd.host.processes()), "the renderer's end"
    )


def test_it_neither_forks_nor_leaves_its_session(program: Process, libvirtd: Libvirtd) -> None:
    assert program.status("PPid") == "1"
    assert [each.pid for each in programs(libvirtd.host)] == [program.pid]


def test_its_standard_fds_are_null(program: Process) -> None:
    fds = program.fds()
    assert [fds[fd] for fd in range(3)] == ["/dev/null"] * 3


def test_it_keeps_libvirts_file_open_and_locked(
    program: Process, the_domain: Domain, libvirtd: Libvirtd
) -> None:
    assert the_domain.pid_file in program.fds().values()
    assert locked(libvirtd.host.path(the_domain.pid_file))


def test_it_is_in_the_domains_control_group(program: Process, the_domain: Domain) -> None:
    """Where there are any: libvirt refuses to start a domain whose program does not hold its file."""
    groups, qemus = (
        dict(line.split(":")[1:] for line in (process.proc / "cgroup").read_text().splitlines())
        for process in (program, the_domain.qemu)
    )
    emulators = {kind: group for kind, group in groups.items() if group.endswith("/emulator")}
    assert emulators.items() <= qemus.items()
    assert emulators or not any("libvirt" in group for group in qemus.values())


def test_it_says_nothing_when_all_is_well(program: Process, libvirtd: Libvirtd) -> None:
    assert libvirtd.syslog.lines(program.pid) == []


def test_why_it_could_not_start_is_in_syslog(libvirtd: Libvirtd) -> None:
    """Of which QEMU only says that it could not read a message."""
    host = libvirtd.host
    wrapper = host.path("/run/wrapper")
    wrapper.write_text(f'#!/bin/sh\nexec {PROGRAM} "$@" --max-memory=none\n')
    wrapper.chmod(0o755)
    description = host.path(f"{DESCRIPTIONS}/10-wrapper.json")
    description.write_text('{"type": "gpu", "binary": "/run/wrapper"}')
    try:
        with pytest.raises(HostProblem):
            launch(libvirtd, "wrapped")
    finally:
        description.unlink()
    line = libvirtd.syslog.wait("--max-memory")
    assert (line.program, line.severity) == ("vhost-user-gpu", ERROR)


def test_destroy_takes_no_time_and_leaves_nothing(libvirtd: Libvirtd) -> None:
    seconds = []
    for name in ("first", "second", "third"):
        with launch(libvirtd, name, paused=False) as domain:
            program = domain.program
            begin = time.monotonic()
            domain.virsh("destroy")
            seconds.append(time.monotonic() - begin)
            assert not program.alive
            assert domain.left() == []
    assert min(seconds) < SOON


def test_it_ends_when_qemu_dies(libvirtd: Libvirtd) -> None:
    with launch(libvirtd, "dies") as domain:
        program = domain.program
        domain.qemu.send(signal.SIGKILL)
        program.wait_gone()
        wait_until(lambda: domain.left() == [])


def test_two_domains_have_two_programs(libvirtd: Libvirtd) -> None:
    with launch(libvirtd, "left") as left, launch(libvirtd, "right") as right:
        assert left.program.pid != right.program.pid
        program = right.program
        left.virsh("destroy")
        assert program.alive
        right.virsh("screenshot", "/run/right.picture")


def test_a_domain_whose_program_is_killed_can_be_destroyed(libvirtd: Libvirtd) -> None:
    with launch(libvirtd, "killed") as domain:
        program = domain.program
        program.send(signal.SIGKILL)
        program.wait_gone()
        assert domain.state == "paused"
        begin = time.monotonic()
        domain.virsh("destroy")
        assert time.monotonic() - begin < HUNG
        assert domain.left() == []


def test_it_outlives_libvirtd_which_stops_it_all_the_same(libvirtd: Libvirtd) -> None:
    with launch(libvirtd, "outlives") as domain:
        program = domain.program
        libvirtd.restart()
        domain.virsh("screenshot", "/run/outlives.picture")  # waits until libvirtd talks to QEMU again
        assert domain.state == "paused"
        assert domain.program.pid == program.pid
        assert locked(libvirtd.host.path(domain.pid_file))
        begin = time.monotonic()
        domain.virsh("destroy")
        assert time.monotonic() - begin < HUNG
        assert not program.alive
        assert domain.left() == []


def test_a_stopped_qemu_does_not_keep_it_from_ending(libvirtd: Libvirtd) -> None:
    """SIGTERM while its front-end hangs, and holds the other end of the socket."""
    with launch(libvirtd, "hangs", paused=False) as domain:
        program = domain.program
        qemu = domain.qemu
        qemu.send(signal.SIGSTOP)
        program.send()
        program.wait_gone()
        qemu.send(signal.SIGCONT)
        domain.virsh("destroy")


MOMENTS: dict[str, Callable[[Process], bool]] = {
    "executed": lambda _: True,
    "importing": lambda program: "vhostd" in (program.proc / "maps").read_text(),
    "looping": lambda program: "anon_inode:[eventpoll]" in program.fds().values(),
    "serving": lambda program: list(program.fds().values()).count("anon_inode:[eventfd]") > OWN_EVENTFDS,
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_sigterm_at_any_moment_ends_it(libvirtd: Libvirtd, moment: str) -> None:
    """Whatever becomes of the domain, which has lost its display."""
    with ThreadPoolExecutor() as pool:
        creation = pool.submit(launch, libvirtd, moment)
        program = terminated_at(libvirtd.host, MOMENTS[moment])
        program.wait_gone()
        with suppress(HostProblem):
            creation.result().close()
    assert programs(libvirtd.host) == []


def terminated_at(host: Host, reached: Callable[[Process], bool]) -> Process:
    """The first program that shows up, after SIGTERM as soon as it has `reached` a moment."""
    found: list[Process] = []

    def there() -> bool:
        try:
            found[:] = [process for process in programs(host) if reached(process)]
        except (FileNotFoundError, ProcessLookupError):  # it was another process, which has ended
            found.clear()
        return bool(found)

    wait_until(there, "the program")
    found[0].send()
    return found[0]
