"""What holds for all tests of the checks."""

from collections.abc import Iterator

import pytest

from vhostd.conformance import subject


@pytest.fixture(scope="module", autouse=True)
def _programs_stay() -> Iterator[None]:
    """Saves the time to see whether a program ends with its front-end: most do not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subject, "LEAVING", 0.0)
        yield
