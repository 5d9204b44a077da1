"""What libvirt does not look at when it decides for a program, and what keeps it from starting it then."""

import stat
from collections.abc import Iterator
from pathlib import Path

from vhostd.ctl.installation import reach
from vhostd.ctl.libvirt.answer import find
from vhostd.ctl.libvirt.discovery import Entry


def hazards(entry: Entry) -> Iterator[str]:
    """Why the start of a program fails that the system's libvirt has chosen, a sentence each."""
    found = find(entry.binary) if entry.binary else None
    if not found or entry.type != "gpu":  # a virtiofsd is started as root
        return
    program = Path(found)
    account = reach.launcher()
    for path in (program, reach.interpreter(program)):
        if closed := reach.barrier(path, stat.S_IXOTH, account):
            yield f"{account.name}, as whom libvirt starts it, cannot reach {path}: {closed} is closed to it"
            break
    if reach.confinement_is_on() and reach.is_confined_out(program):
        yield f"AppArmor's profile of libvirtd does not let it start {program}: have it in /usr/bin"
