import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from vhostd.host.pause import pause

ASKED = """
import os, signal
from vhostd.host.pause import pause
signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
os.kill(os.getpid(), {number})
pause(3600)
"""


def test_it_waits() -> None:
    before = time.monotonic()
    pause(0.01)
    assert time.monotonic() - before >= 0.01


def test_a_stop_until_the_time_is_over_is_no_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Python returns after SIGCONT is no signal's."""
    monkeypatch.setattr(signal, "sigtimedwait", lambda *_: SimpleNamespace(si_signo=0))
    pause(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_who_is_asked_to_end_ends_well(number: int) -> None:
    code = ASKED.format(number=int(number))
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
