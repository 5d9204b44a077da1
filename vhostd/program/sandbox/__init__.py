"""The sandbox: before its first message a program gives up what a hostile guest could use against the host.

What it has opened stays usable; what it opens, calls or starts from then on is limited, for good, and for
all threads that are still to come:

    privileges.py   no capabilities, no new ones by exec, no core dumps
    landlock.py     no files but Python's own modules and what was granted; no TCP; no signals to others
    seccomp.py      no system calls but those that serving takes, and granted ones; no code but what is there
    names.py        no file removed but those that are granted
"""

from collections.abc import Iterator
from contextlib import contextmanager

from vhostd.errors import SetupError
from vhostd.host.grants import Grants
from vhostd.program.sandbox import landlock, privileges
from vhostd.program.sandbox.names import FixedNames
from vhostd.program.sandbox.seccomp import Filter


def confine(grants: Grants) -> None:
    """Gives up all but the grants, for good; SetupError names what the host lacks for it.

    To be called by the only thread.
    """
    with _part("limits"):
        privileges.limit()
    with _part("seccomp"):  # whose library Landlock would hide
        rules = Filter(grants, FixedNames((*grants.removed, *grants.connected)))
    with _part("Landlock"):
        landlock.restrict(grants, landlock.interface())
    with _part("capabilities"):  # which finding the folders may have taken
        privileges.drop()
    with _part("seccomp"):
        rules.load()


@contextmanager
def _part(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise SetupError(f"no sandbox here: {what}: {reason}; --sandbox=none does without") from None
