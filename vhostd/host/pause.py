"""A pause in the set-up of a program, before its event loop runs."""

import signal

ENDING = (signal.SIGTERM, signal.SIGINT)


def pause(seconds: float) -> None:
    """Waits so long; ends the program, with status 0, if that is asked for meanwhile.

    Signals are held back until the event loop takes them, so nobody else would notice.
    """
    came = signal.sigtimedwait(ENDING, seconds)
    # If the process was stopped (SIGSTOP) until the time was over, Python returns whatever lay in memory.
    if came is not None and came.si_signo in ENDING:
        raise SystemExit(0)
