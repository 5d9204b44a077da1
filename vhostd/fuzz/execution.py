"""Runs cases against a back-end, and looks after each whether something is wrong with it."""

import socket

from vhostd.errors import MemoryLost, SetupError
from vhostd.fuzz.operation import Case, Connect
from vhostd.fuzz.patience import Patience
from vhostd.fuzz.rig import Rig
from vhostd.fuzz.target import Target
from vhostd.fuzz.traits import Traits, learn
from vhostd.fuzz.verdict import LEAK, SPINS, Finding, ended, reports, spins

SOCKET = 10.0  # seconds until there is a socket
START = 30.0  # seconds from then on until it serves
PATIENCE = 5.0  # seconds for an answer
REPEATS = 4  # of a case that seems to leave something behind


class Execution:
    """One back-end, and cases run against it one after the other. It is started again when it has ended."""

    def __init__(self, target: Target, seconds: float = PATIENCE) -> None:
        self.target = target
        self.seconds = seconds
        self.rig = Rig(target, self._dial)
        self._line: socket.socket | None = None  # a connection for the next case
        self.cases = self.starts = 0
        self.lines: list[str] = []  # what it has said in the last case
        self.usual_end: int | None = None  # its status, if it serves a single front-end
        self._spins = False
        self._most_fds = self._most_resident = 0

    def begin(self) -> None:
        """Starts the back-end, if it does not run. Raises SetupError."""
        if self.target.status is not None:
            self._hang_up()
            self.target.start()
            self.starts += 1
            try:
                self.target.listens(SOCKET)
                self._line = self.target.reach(START)
            except OSError as error:
                raise SetupError(
                    f"the back-end does not serve: {error}: {self.target.last_words()}"
                ) from None
            self._most_fds = self.target.fds()
            self._most_resident = self.target.resident()
            self.target.said()

    def learn(self) -> Traits:
        """Finds out what it offers, and how it behaves when nothing is wrong.

        That is after a front-end has gone, and with nothing to do. Raises SetupError if it does not serve.
        """
        self.begin()
        traits = learn(self._dial(), Patience(self.seconds, self.target.pid))
        if self.target.ends_within(0.5):
            self.usual_end = self.target.status
        self.begin()
        self._hang_up()
        self._spins = spins(self.target)
        return traits

    def run(self, case: Case) -> Finding | None:
        """Runs a case to its end, or until something is found."""
        self.begin()
        self._do(case)
        found = self._judge()
        if found or self.target.status is not None:
            return found
        grown = self._grown()
        if grown is None or not self._keeps_growing(case, grown.kind):
            return None
        self.stop()  # so that it does not go on with what it has kept
        return grown

    def alone(self, case: Case) -> Finding | None:
        """Runs a case in a back-end that has had no other."""
        self.stop()
        return self.run(case)

    def idles(self) -> Finding | None:
        """Looks whether it is busy with nothing, now that nobody is connected."""
        self._hang_up()
        if not self._spins and spins(self.target) and spins(self.target, 1.0):
            return Finding(SPINS, "it keeps a processor busy while nobody is connected")
        return None

    def _do(self, case: Case) -> None:
        self.cases += 1
        self.rig.is_stuck = False
        self.rig.seconds = self.seconds
        for operation in case:
            if self.rig.is_open or isinstance(operation, Connect):
                try:
                    operation.do(self.rig)
                except MemoryLost:  # ours, since its file was cut
                    continue
        if self.rig.is_open:
            self.rig.settle()  # a close would take back what the back-end has not read yet
        self.rig.disconnect()

    def stop(self) -> None:
        """Ends the back-end."""
        self._hang_up()
        self.target.stop()

    def _dial(self) -> socket.socket:
        sock, self._line = self._line, None
        return sock or self.target.reach(self.seconds)

    def _hang_up(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None

    def _judge(self) -> Finding | None:
        """Whether it still serves, and what it has said."""
        alive = True
        try:
            self._line = self._dial()
        except OSError:
            alive = False
        self.lines = self.target.said()
        if found := reports(self.lines) or ended(self.target, self.usual_end, self.lines):
            return found
        if not alive and self.target.status is None:
            self.stop()
            return Finding("hang", f"no answer to GET_FEATURES on a new connection within {self.seconds:g} s")
        return None

    def _grown(self) -> Finding | None:
        """What it has more of than ever before."""
        fds, resident = self.target.fds(), self.target.resident()
        more, heavier = fds - self._most_fds, resident - self._most_resident
        self._most_fds = max(fds, self._most_fds)
        if more > 0:
            return Finding("fds", f"{more} fds more than before it")
        if heavier > LEAK:
            self._most_resident = resident
            return Finding("memory", f"{heavier >> 20} MiB more than before it")
        return None

    def _keeps_growing(self, case: Case, kind: str) -> bool:
        """Whether the case leaves something behind each time."""
        for _ in range(REPEATS):
            self._do(case)
            if self._judge() or self.target.status is not None:
                return False
            grown = self._grown()
            if grown is None or grown.kind != kind:
                return False
        return True
