"""The sandbox: before its first message a program gives up what a hostile guest could use against the host.

What it has opened stays usable; what it opens, calls or starts from then on is limited, for good, and for
all threads that are still to come:

    privileges.py   no capabilities, no new ones by exec, no core dumps
    landlock.py     no files but Python's own modules and what was granted; no TCP; no signals to others
    seccomp.py      no system calls but those that serving takes
"""

from vhostd.errors import SetupError
from vhostd.grants import Grants
from vhostd.sandbox import landlock, privileges, seccomp


def enter(grants: Grants) -> None:
    """Gives up all but the grants, for good; SetupError names what the host lacks for it.

    To be called by the only thread.
    """

    def restrict_files() -> None:
        landlock.restrict(grants, landlock.interface())

    for what, give_up in (
        ("limits", privileges.limit),
        ("Landlock", restrict_files),
        ("capabilities", privileges.drop),  # which finding the folders may have taken
        ("seccomp", lambda: seccomp.restrict(grants.ioctls)),
    ):
        try:
            give_up()
        except OSError as error:
            reason = error.strerror or error
            raise SetupError(f"no sandbox here: {what}: {reason}; --sandbox=none does without") from None
