"""How a program is started, and how it ends: QEMU's conventions for back-end programs.

The conventions call themselves a good idea, and their options mandatory. A back-end works with every
front-end without them, if only a person knows how to start it. So the options are shoulds, and that SIGTERM
ends it is a must.

**--fd.** The conventions speak of "the vhost-user socket". Some programs take that for a connection, others
for a socket that listens. Either is accepted.

**The description.** Whether the file that libvirt reads is right is for `vhostctl validate` to say.

**More than the conventions.** A socket that a killed program has left behind is in the way of the next one.
Nobody says who removes it; programs that do it themselves can be restarted by anybody.
"""

import json
import os
import socket
import time
from typing import Any

from vhostd.conformance.check import Group, Needs
from vhostd.conformance.launch import OPTION, Command, Ended, Stale
from vhostd.conformance.schema import Kind, faults
from vhostd.conformance.trial import Trial
from vhostd.conformance.verdict import Failed, expect, skip
from vhostd.errors import SetupError
from vhostd.frontend import Backend
from vhostd.host.signals import signal_name
from vhostd.vhost_user.messages import GET_FEATURES
from vhostd.wire.rows import Empty

CONVENTIONS = Group("CONV", "Program conventions")

PROGRAM = Needs(program=True)
AT_WORK = Needs(program=True, exchange=True)
CAPABILITIES = "--print-capabilities"
UNKNOWN = "--no-such-option"
QUICK = 1.0  # seconds
TRIES = 3


@CONVENTIONS.should(1, CAPABILITIES, "It prints a JSON object, and ends with success.", PROGRAM)
async def capabilities(trial: Trial) -> None:
    """Starts the program with --print-capabilities, and reads its stdout."""
    ended = await Command(trial.subject).ends(CAPABILITIES)
    expect(not ended.status, f"it ended with status {ended.status}: {_last_line(ended)}")
    try:
        document = json.loads(ended.output)
    except ValueError as error:
        raise Failed(f"what it prints is not JSON: {error}") from None
    expect(isinstance(document, dict), "what it prints is no JSON object")


@CONVENTIONS.should(2, CAPABILITIES, "The object is as vhost-user.json has it.", PROGRAM)
async def schema(trial: Trial) -> None:
    """Compares what it prints with the schema: a type that is known, and a list of features."""
    found = [fault for fault in faults(await _printed(trial), Kind.CAPABILITIES) if not fault.tolerable]
    expect(not found, "; ".join(f"{fault.place}: {fault.message}" for fault in found))


@CONVENTIONS.should(3, CAPABILITIES, "All other options are ignored.", PROGRAM)
async def other_options(trial: Trial) -> None:
    """Adds an option that does not exist: it prints the same."""
    document = await _printed(trial)
    ended = await Command(trial.subject).ends(CAPABILITIES, UNKNOWN)
    expect(not ended.status, f"with {UNKNOWN} it ended with status {ended.status}: {_last_line(ended)}")
    expect(json.loads(ended.output or b"0") == document, f"with {UNKNOWN} it prints something else")


@CONVENTIONS.advice(4, CAPABILITIES, "It is done within a second.", PROGRAM)
async def quick(trial: Trial) -> None:
    """Takes the time of the quickest of three starts: libvirt waits for it whenever it starts a domain."""
    await _printed(trial)
    took = []
    for _ in range(TRIES):
        begin = time.monotonic()
        await Command(trial.subject).ends(CAPABILITIES)
        took.append(time.monotonic() - begin)
        if took[-1] < QUICK:
            return
    raise Failed(f"it took {min(took):.1f} s")


@CONVENTIONS.should(5, OPTION, "The option makes the socket at that path.", PROGRAM)
async def socket_path(trial: Trial) -> None:
    """Looks at the command that the check was given, and at where its socket is."""
    option = Command(trial.subject).option
    expect(option == OPTION, f"its socket's path is given by {option}")
    program = trial.subject.program
    if program is not None:
        (await trial.connect()).close()
        expect((program.folder / "vhost.sock").exists(), "the socket is not at the path that was given")


@CONVENTIONS.should(6, "--fd", "It serves a socket whose fd it is given.", PROGRAM)
async def fd(trial: Trial) -> None:
    """Starts it with --fd of a socket that listens, and of one that is connected: it answers on either."""
    command, said = Command(trial.subject), ""
    await _pause(trial)
    for place in ("{listener}", "{fd}"):
        try:
            words = command.with_socket(f"--fd={place}")
            async with Backend(words, patience=trial.subject.patience) as backend:
                await trial.owns(await backend.connect()).call(GET_FEATURES, Empty())
                return
        except (SetupError, ConnectionError, TimeoutError) as error:
            said = str(error)
    raise Failed(f"with --fd it does not serve: {said}")


@CONVENTIONS.should(7, "--fd", "It is incompatible with --socket-path.", PROGRAM)
async def both(trial: Trial) -> None:
    """Starts it with both: it ends with a status other than 0."""
    command = Command(trial.subject)
    if command.option != OPTION:
        skip(f"its socket's path is given by {command.option}")
    ours, theirs = (trial.fd(each.detach()) for each in socket.socketpair())
    ended = await command.ends(f"--fd={theirs.fileno()}", fds=[theirs])
    ours.close()
    expect(ended.status, "given both, it ended with status 0")


@CONVENTIONS.must(8, "SIGTERM", "It ends when nobody is connected.", PROGRAM)
async def terminated(trial: Trial) -> None:
    """Sends SIGTERM: it ends."""
    if trial.subject.is_one_shot:
        skip("it ends with its front-end")
    await _terminate(trial)


@CONVENTIONS.must(9, "SIGTERM", "It ends while a front-end is connected.", PROGRAM)
async def terminated_while_connected(trial: Trial) -> None:
    """Connects, negotiates, and sends SIGTERM: it ends."""
    await trial.negotiate()
    await _terminate(trial)


@CONVENTIONS.must(10, "SIGTERM", "It ends in the middle of work.", AT_WORK)
async def terminated_at_work(trial: Trial) -> None:
    """Posts 16 requests and a kick, and sends SIGTERM at once: it ends."""
    ring = await trial.ring()
    await ring.work()
    for _ in range(ring.queue.size // 4):
        ring.post()
    ring.queue.kick()
    await _terminate(trial)


@CONVENTIONS.advice(11, "SIGTERM", "To be ended is no failure.", PROGRAM)
async def ends_well(trial: Trial) -> None:
    """Sends SIGTERM: its exit status is 0, and it was not the signal that has ended it."""
    await trial.connect()
    status = await _terminate(trial)
    expect(status >= 0, f"it was ended by {signal_name(-status)}, without having had a say")
    expect(not status, f"its exit status is {status}")


@CONVENTIONS.advice(12, "SIGTERM", "It leaves no socket behind.", PROGRAM)
async def socket_goes(trial: Trial) -> None:
    """Sends SIGTERM: the socket is gone."""
    Command(trial.subject)  # one that makes a socket
    await trial.connect()
    await _terminate(trial, expect_no_socket=True)


@CONVENTIONS.advice(13, OPTION, "A socket that a killed program has left is replaced.", PROGRAM)
async def stale_socket(trial: Trial) -> None:
    """Starts it where a socket is at which nobody listens: it serves there."""
    command = Command(trial.subject)
    await _pause(trial)
    async with Stale(command.words, patience=trial.subject.patience) as backend:
        await trial.owns(await backend.connect()).call(GET_FEATURES, Empty())


@CONVENTIONS.should(14, "Backend program conventions", "What it cannot do makes it fail early.", PROGRAM)
async def unknown_option(trial: Trial) -> None:
    """Starts it with an option that does not exist: it ends with a status other than 0."""
    expect((await Command(trial.subject).ends(UNKNOWN)).status, f"with {UNKNOWN} it ended with status 0")


@CONVENTIONS.advice(15, "Backend program conventions", "It says why it fails.", PROGRAM)
async def says_why(trial: Trial) -> None:
    """Starts it in the same way: there is a line on stderr."""
    expect((await Command(trial.subject).ends(UNKNOWN)).errors.strip(), f"with {UNKNOWN} it says nothing")


@CONVENTIONS.should(16, "Backend program conventions", "A socket that cannot be made makes it fail.", PROGRAM)
async def no_such_folder(trial: Trial) -> None:
    """Starts it with a socket in a folder that is not there: it ends with a status other than 0."""
    await _pause(trial)
    ended = await Command(trial.subject).ends(path="{folder}/none/vhost.sock")
    expect(ended.status, "without a socket it ended with status 0")


async def _printed(trial: Trial) -> Any:
    """The capabilities; the check is skipped if it does not print them."""
    ended = await Command(trial.subject).ends(CAPABILITIES)
    try:
        return skip("it does not print its capabilities") if ended.status else json.loads(ended.output)
    except ValueError:
        skip("it does not print its capabilities")


async def _pause(trial: Trial) -> None:
    """Ends the program, so that another may use what it has used. It is started again after the check."""
    if trial.subject.program is not None:
        await trial.subject.program.kill()
        trial.on_end(trial.subject.revive)


async def _terminate(trial: Trial, *, expect_no_socket: bool = False) -> int:
    """Its status after SIGTERM. It is started again after the check."""
    program = trial.subject.program
    if program is None:
        skip("this needs a command that starts the program")
    trial.on_end(trial.subject.revive)
    try:
        status = await program.stop()
    except TimeoutError:
        raise Failed("SIGTERM does not end it") from None
    left = [name for name in os.listdir(program.folder) if name.startswith("vhost.sock")]
    expect(not (expect_no_socket and left), f"{', '.join(left)} is still there")
    return status


def _last_line(ended: Ended) -> str:
    lines = ended.errors.decode(errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "it said nothing")
