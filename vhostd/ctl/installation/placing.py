"""Writes and removes files: all of them, or none."""

import os
import signal
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import mkstemp

FILE_MODE = 0o644  # whatever the umask is: other users must be able to read the files
FOLDER_MODE = 0o755


def place(files: Mapping[Path, bytes], obsolete: Iterable[Path] = ()) -> None:
    """Writes files, and removes obsolete ones. Each file is replaced in one step: no reader sees half of it.

    On failure everything is as before; an OSError names the file.
    """
    with _signals_held(), ExitStack() as undo:
        for folder in missing_folders(files):
            undo.callback(_remove_folder, folder)
            folder.mkdir(exist_ok=True)  # another installation may make it at the same time
            folder.chmod(FOLDER_MODE)
        for path, data in files.items():
            if path.is_file():
                undo.callback(_replace, path, path.read_bytes())
            else:
                undo.callback(path.unlink, missing_ok=True)
            _replace(path, data)
        for path in obsolete:
            undo.callback(_replace, path, path.read_bytes())
            path.unlink()
        undo.pop_all()


@contextmanager
def _signals_held() -> Iterator[None]:
    """Blocks the signals that would end the program half-way."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGHUP, signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def missing_folders(paths: Iterable[Path]) -> list[Path]:
    """The folders that are missing for these files, outer ones first."""
    return sorted({folder for path in paths for folder in path.parents if not folder.exists()})


def remove_folders(folders: Iterable[Path]) -> None:
    """Removes the folders that are empty, inner ones first."""
    for folder in sorted(folders, reverse=True):
        _remove_folder(folder)


def _remove_folder(folder: Path) -> None:
    with suppress(OSError):  # it has other files, or is gone
        folder.rmdir()


def _replace(path: Path, data: bytes) -> None:
    # libvirt and systemd look into these folders at any time; they skip hidden files.
    temporary = ""
    try:
        fd, temporary = mkstemp(prefix=".vhostd-", dir=path.parent)
        with open(fd, "wb") as file:
            file.write(data)
            os.fchmod(fd, FILE_MODE)
            file.flush()
            os.fsync(fd)
        os.replace(temporary, path)
    except OSError as error:
        error.filename = str(path)  # the user does not know the temporary file's name; write() gives no name
        raise
    finally:
        with suppress(FileNotFoundError):  # it has become the file
            os.unlink(temporary)
