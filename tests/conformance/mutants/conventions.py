"""Faults of how a program starts and ends. What is looked at by the command line is broken there."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from tests.conformance.faults import SILENCE, breaks, replace
from vhostd.program import server, start
from vhostd.program.endpoint import Endpoint
from vhostd.program.server import Server
from vhostd.virtio.queue_runner import QueueRunner

CAPABILITIES = "--print-capabilities"
UNKNOWN = "--no-such-option"


@breaks("CONV-1", "what it prints is not JSON")
def greets() -> None:
    """It says hello before its capabilities."""
    replace(start, "say", lambda say, text: say(f"starting\n{text}"))


@breaks("CONV-2", '"entropy" is none of')
def type_of_its_own() -> None:
    """Its type is no word of the schema."""
    replace(start, "say", lambda say, text: say(text.replace('"rng"', '"entropy"')))


@breaks("CONV-3", "with --no-such-option it ended with status 2")
def reads_all_options() -> None:
    """An option that it does not know ends it, whatever else is asked for."""
    if UNKNOWN in sys.argv:
        sys.exit(2)


@breaks("CONV-4", "it took ")
def takes_its_time() -> None:
    """It needs more than a second to say what it is."""
    if CAPABILITIES in sys.argv:
        time.sleep(1.1)


@breaks("CONV-5", "the socket is not at the path that was given")
def numbers_its_socket() -> None:
    """It adds a number to the socket's path."""
    sys.argv = [f"{word}0" if word.startswith("--socket-path=") else word for word in sys.argv]


@breaks("CONV-6", "with --fd it does not serve")
def takes_no_fd() -> None:
    """It has no --fd."""
    if any(word.startswith("--fd=") for word in sys.argv):
        sys.exit(2)


@breaks("CONV-7", "it goes on", patience=SILENCE)
def takes_both() -> None:
    """With both it takes the path."""
    if any(word.startswith("--socket-path=") for word in sys.argv):
        sys.argv = [word for word in sys.argv if not word.startswith("--fd=")]


@breaks("CONV-8", "SIGTERM does not end it", patience=SILENCE)
def ignores_sigterm() -> None:
    """It goes on whatever it is told."""
    replace(server, "_end", lambda _before, _ending: None)


@breaks("CONV-9", "SIGTERM does not end it", patience=SILENCE)
def waits_for_its_front_end() -> None:
    """It ends only while nobody is connected."""
    connected: list[Server] = []

    async def serve(before: Any, self: Server, sock: Any) -> None:
        connected.append(self)
        await before(self, sock)
        connected.remove(self)

    replace(Server, "_serve", serve)
    replace(server, "_end", lambda end, ending: None if connected else end(ending))


@breaks("CONV-10", "SIGTERM does not end it", patience=SILENCE)
def finishes_its_work() -> None:
    """It does not end once a ring has run."""
    started: list[QueueRunner] = []

    def run(before: Any, self: QueueRunner, *arguments: Any) -> None:
        started.append(self)
        before(self, *arguments)

    replace(QueueRunner, "start", run)
    replace(server, "_end", lambda end, ending: None if started else end(ending))


@breaks("CONV-11", "its exit status is 3")
def ends_with_a_complaint() -> None:
    """It takes SIGTERM for a failure."""
    replace(server, "_end", lambda _before, _ending: os._exit(3))


@breaks("CONV-12", "vhost.sock is still there")
def leaves_its_socket() -> None:
    """It leaves the socket's file behind."""
    replace(Endpoint, "close", lambda _before, self: self.socket.close())


@breaks("CONV-13", "has ended with status 1")
def respects_what_is_there() -> None:
    """It does not start where there is a file at the socket's path."""
    if (path := _socket_path()).exists():
        sys.exit(f"{path} exists")


@breaks("CONV-14", "it goes on", patience=SILENCE)
def passes_over_options() -> None:
    """What it does not know it passes over."""
    sys.argv = [word for word in sys.argv if word != UNKNOWN]


@breaks("CONV-15", "it says nothing")
def fails_silently() -> None:
    """It does not say why it ends."""
    if UNKNOWN in sys.argv:
        os._exit(2)


@breaks("CONV-16", "it goes on", patience=SILENCE)
def waits_for_a_folder() -> None:
    """It waits until the socket's folder is there."""
    if not _socket_path().parent.exists():
        signal.pause()


def _socket_path() -> Path:
    """Where its socket is to be; itself if that is not said."""
    paths = [word.partition("=")[2] for word in sys.argv if word.startswith("--socket-path=")]
    return Path(paths[0]) if paths else Path(__file__)
