"""Names in memory of their own, in a child: they stay there for good."""

import os
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).parents[3]
CHILD = """
import ctypes, sys
from vhostd.host.folder import Folder
from vhostd.host.removal import Removal
from vhostd.program.sandbox import names

folder = Folder(sys.argv[1])
removals = [Removal(folder, name) for name in sys.argv[2:]]
fixed = names.FixedNames(removals)
below = all(address < fixed.end for address in fixed.addresses)
print([ctypes.string_at(address).decode() for address in fixed.addresses], below)
place = fixed.addresses[0] if removals else None
print(names.PLACES.index(place) if removals else fixed.end)
print(names.FixedNames(removals).addresses != fixed.addresses)  # its place is taken
if removals:
    removals[0]()
"""


def told(folder: Path, *names: str) -> list[str]:
    command = [sys.executable, "-c", CHILD, str(folder), *names]
    return subprocess.run(
        command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True, check=True
    ).stdout.splitlines()


def test_names_lie_one_after_the_other_and_are_what_is_removed(tmp_path: Path) -> None:
    names = ["a.sock", "b" * 107, "\u00e4.sock"]
    for name in names:
        (tmp_path / name).touch()
    assert told(tmp_path, *names) == [f"{names} True", "0", "True"]
    assert sorted(os.listdir(tmp_path)) == sorted(names[1:])


def test_without_names_there_is_no_such_memory(tmp_path: Path) -> None:
    assert told(tmp_path) == ["[] True", "0", "False"]
