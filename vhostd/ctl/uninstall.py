"""Removes the files that `vhostctl install` has written; files that were changed since are kept.

From a tree (--destdir) it removes the files that the same installation would write now.
"""

import argparse
import os
from pathlib import Path

from vhostd.ctl.install import add_places, chosen, inside, places_of
from vhostd.ctl.installation.contents import contents
from vhostd.ctl.installation.places import Places
from vhostd.ctl.installation.placing import remove_folders
from vhostd.ctl.installation.record import Record, digest, installed
from vhostd.ctl.output import printable, show
from vhostd.errors import SetupError
from vhostd.program.log import write_line

add_options = add_places


def run(options: argparse.Namespace) -> int:
    """Removes the files, and the folders that were made for them if they are empty. Prints their names."""
    places = places_of(options)
    record = _of_tree(places, options.destdir) if options.destdir else _of_machine(places)
    removed: list[Path] = []
    try:
        for path in record.files:
            if _remove(path, record):
                removed.append(path)
        if not options.destdir:
            places.record.unlink()
        remove_folders(record.folders)
    except OSError as error:
        raise SetupError(f"{error.filename}: {error.strerror}") from None
    finally:
        show(map(printable, removed))
    return 0


def _of_machine(places: Places) -> Record:
    record = installed(places)
    if record is None:
        raise SetupError(f"nothing to remove: there is no {places.record}")
    return record


def _of_tree(places: Places, tree: Path) -> Record:
    files = {inside(tree, path): digest(data) for path, data in contents(places, chosen(None, tree)).items()}
    made = {folder for path in files for folder in path.parents if tree in folder.parents}
    return Record(files=files, folders=sorted(made))


def _remove(path: Path, record: Record) -> bool:
    """Removes a file if it is unchanged; returns whether it did."""
    if record.is_unchanged(path):
        path.unlink()
        return True
    if os.path.lexists(path):
        write_line(f"vhostctl: warning: {path} was changed since it was installed, and is kept")
    return False
