"""Obstacles to a program's start that libvirt does not check when it chooses the program."""

import stat
from collections.abc import Iterator
from pathlib import Path

from vhostd.ctl.installation import reach
from vhostd.ctl.libvirt.answer import find
from vhostd.ctl.libvirt.discovery import Entry


def hazards(entry: Entry) -> Iterator[str]:
    """Why a program cannot be started after the system's libvirt has chosen it, one sentence each."""
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
