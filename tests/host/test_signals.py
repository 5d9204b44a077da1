"""Names of signals."""

import signal

from vhostd.host.signals import signal_name


def test_a_signal_has_its_name() -> None:
    assert signal_name(signal.SIGSEGV) == "SIGSEGV"


def test_a_real_time_signal_has_a_number() -> None:
    assert signal_name(signal.SIGRTMIN + 1) == f"signal {signal.SIGRTMIN + 1}"
