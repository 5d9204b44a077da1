"""The units of contrib/systemd as they are once installed: with the programs' real paths."""

import sys
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
UNITS = CHECKOUT / "contrib/systemd"
PROGRAMS = ("vhost-user-rng", "vhost-user-blk", "vhost-user-gpu", "vhost-user-input", "vhost-user-console")
CONFIGURATION = "/etc/"  # what the units begin the path of their EnvironmentFile with


def install(folder: Path, configuration: Path | None = None) -> None:
    """Copies all units into `folder`; `configuration` stands for /etc, if it is given."""
    binaries = str(Path(sys.executable).parent)
    for unit in UNITS.iterdir():
        text = unit.read_text().replace("/usr/bin/vhost-user-", f"{binaries}/vhost-user-")
        if configuration is not None:
            text = text.replace(f"EnvironmentFile=-{CONFIGURATION}", f"EnvironmentFile=-{configuration}/")
        (folder / unit.name).write_text(text)
