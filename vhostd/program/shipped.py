"""The files that come with the package: in a checkout they lie beside it, once installed below its prefix."""

from pathlib import Path

from vhostd.errors import SetupError

DESCRIPTIONS = ("share/vhost-user",)
UNITS = ("contrib/systemd", "share/vhostd/systemd")  # in a checkout, and once installed


def shipped(*places: str) -> Path:
    """The nearest of these folders or files, going up from the package: in its checkout or in its prefix."""
    for root in Path(__file__).parents:
        for place in places:
            if (root / place).exists():
                return root / place
    raise SetupError(f"{places[-1]} is missing: nothing above {Path(__file__).parent} has it")
