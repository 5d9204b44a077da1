"""Back-ends for the tests of what runs the checks."""

import shlex
import sys
from pathlib import Path

FAKE = Path(__file__).with_name("fake.py")


def fake(manner: str) -> str:
    """The command of a back-end that behaves in this manner when SET_OWNER comes (fake.py)."""
    return shlex.join([sys.executable, "-S", "-E", str(FAKE), manner, "{socket}"])
