"""Devices as the tests ask for them."""

from pathlib import Path

from vhostd.ctl.machine.devices import Device, Wish, devices
from vhostd.ctl.machine.kinds import KINDS, Kind

HERE = Path("/here")


def kind(name: str) -> Kind:
    """The kind of this name."""
    return next(each for each in KINDS if each.name == name)


def made(*texts: str) -> list[Device]:
    """Devices by the words of a command line: `--disk=a.img`, `--rng`."""
    wishes = []
    for text in texts:
        option, _, value = text.partition("=")
        wishes.append(Wish(kind(option.removeprefix("--")), text, HERE, value))
    return devices(wishes)
