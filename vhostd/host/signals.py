"""Names of signals."""

import signal


def signal_name(number: int) -> str:
    """The name of a signal, or its number, since most real-time signals have no name."""
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
