"""A program's socket and its connections, as far as they may be seen."""

import pytest

from vhostd.ctl.processes.found import Process
from vhostd.ctl.processes.front_end import Place, name_of, place
from vhostd.ctl.processes.sockets import UnixSocket

LISTENER = UnixSocket(10, "/run/a", True, 0)
ACCEPTED = UnixSocket(11, "/run/a", False, 21)
OTHERS = UnixSocket(12, "/run/b", False, 22)
CONNECTED = UnixSocket(13, "", False, 23)
SOCKETS = {each.inode: each for each in (LISTENER, ACCEPTED, OTHERS, CONNECTED)}
PATH = ("--socket-path=/run/a",)


@pytest.mark.parametrize(
    ("arguments", "fds", "found"),
    [
        (PATH, {3: 10, 4: 11, 5: 12}, Place("/run/a", True, (21,))),
        (PATH, {3: 10}, Place("/run/a", True, ())),
        (PATH, None, Place("/run/a", True, (21,))),
        (("--socket-path=/run/c",), None, Place("/run/c", True, None)),
        (("--fd=6",), {6: 10, 4: 11}, Place("/run/a", True, (21,))),
        (("--fd=6",), {6: 13}, Place(None, False, (23,))),
        (("--fd=6",), {}, Place(None, None, None)),
        (("--fd=x",), {3: 13}, Place(None, False, (23,))),
        ((), {3: 10}, Place("/run/a", True, ())),
        ((), None, Place(None, None, None)),
    ],
)
def test_where_it_is(arguments: tuple[str, ...], fds: dict[int, int] | None, found: Place) -> None:
    process = Process(0, "vhost-user-rng", arguments, "root", 0.0)
    assert place(process, fds, SOCKETS) == found


def test_a_process_that_has_ended() -> None:
    assert name_of(0) == ""
