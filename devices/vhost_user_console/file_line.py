"""A file as a port's line: what the guest writes is appended to it."""

import os
import stat

from vhost_user_console.line import Line
from vhostd import Fd, SetupError

FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC


class FileLine(Line):
    """Appends to the file at `path`, which is made if it is not there. It never has anything to say."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path
        try:
            self._file = Fd(os.open(path, FLAGS, 0o666))
        except OSError as error:
            raise SetupError(f"file={path}: {error.strerror}") from None
        if not stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
            self.close()
            raise SetupError(f"file={path}: what is there is no file")

    @property
    def place(self) -> str:
        return self.path

    async def run(self) -> None:
        """It is there, always."""
        self._opened(self._file.fileno())
        self.input_ended()

    def close(self) -> None:
        """Closes the file; idempotent."""
        self._file.close()
