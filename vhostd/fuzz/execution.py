"""Runs cases against a back-end, and looks after each whether something is wrong with it."""

import socket

from vhostd.errors import MemoryLost
from vhostd.fuzz.operation import Case, Connect
from vhostd.fuzz.rig import Rig
from vhostd.fuzz.target import Target
from vhostd.fuzz.verdict import LEAK, SPINS, Finding, ended, reports, spins

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
        self._may_end = self._spins = False
        self._most_fds = self._most_resident = 0

    def begin(self) -> None:
        """Starts the back-end, if it does not run. Raises SetupError."""
        if self.target.status is not None:
            self.target.start()
            self.starts += 1
            self._most_fds = self.target.fds()
            self._most_resident = self.target.resident()
            self.target.said()

    def learn(self) -> None:
        """Finds out how it behaves when nothing is wrong: after a front-end has gone, and with nothing to do."""
        self.begin()
        self._dial().close()
        self._may_end = self.target.ends_within(0.5) and self.target.status == 0
        self.begin()
        self._spins = spins(self.target)

    def run(self, case: Case) -> Finding | None:
        """Runs a case to its end, or until something is found."""
        self.begin()
        self._do(case)
        found = self._judge()
        if found or self.target.status is not None:
            return found
        grown = self._grown()
        if grown and self._keeps_growing(case):
            return grown
        return None

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
        if found := reports(self.lines) or ended(self.target, may_end=self._may_end, lines=self.lines):
            return found
        if not alive and self.target.status is None:
            self.stop()
            return Finding("hang", f"no answer to GET_FEATURES on a new connection within {self.seconds:.0f} s")
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

    def _keeps_growing(self, case: Case) -> bool:
        """Whether the case leaves something behind each time."""
        for _ in range(REPEATS):
            self._do(case)
            if self._judge() or self.target.status is not None or not self._grown():
                return False
        return True
