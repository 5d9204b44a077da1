"""What does not go with our devices on QEMU's command line, said before anything is started."""

import os
from collections.abc import Mapping

from vhostd.ctl.machine.words import Words, properties
from vhostd.errors import UsageError

WITHOUT_PCI = ("none", "microvm", "isapc")  # machines
SESSIONS = ("WAYLAND_DISPLAY", "DISPLAY")  # variables of a graphical session
WITHOUT_GL = ("none", "egl-headless", "dbus", "help")  # displays that need not be told to use GL
PCS = ("x86_64", "i386", "amd64")  # ends of the names of programs
HOSTS_OWN = ("kvm", "qemu-kvm")  # whose machines are the host's
ON = ("on", "core", "es")


def check(words: Words) -> None:
    """Raises UsageError for what keeps any of our devices from working."""
    if words.has("daemonize"):
        raise UsageError("-daemonize: `vhostctl run` ends with QEMU, which must stay in the foreground")
    if words.has("readconfig"):
        raise UsageError("-readconfig: what the file has is not seen here: name it on the command line")
    machine = words.property("machine", "type", "type")
    if machine in WITHOUT_PCI and not (machine == "microvm" and words.property("machine", "pcie") == "on"):
        raise UsageError(f"-machine {machine}: it has no PCI, which our devices need")
    if words.program.endswith("qemu-system-s390x"):
        raise UsageError("qemu-system-s390x: its devices are channel devices, and ours need PCI")


def has_vga(words: Words) -> bool:
    """Whether the machine is a PC whose VGA device is for us to choose."""
    name = os.path.basename(words.program)
    host = os.uname().machine if name in HOSTS_OWN else ""
    return f"{name}{host}".endswith(PCS) and not words.has("vga")


def display_arguments(words: Words, environment: Mapping[str, str] = os.environ) -> list[str]:
    """QEMU's arguments for a display of ours: one that uses GL, or none at all. Raises UsageError."""
    remedy = "use -display gtk,gl=on, or -display none and its monitor's screendump"
    for option in ("vnc", "curses"):
        if any(value != "none" for value in words.values(option)):
            raise UsageError(f"-{option}: QEMU cannot show a vhost-user display there: {remedy}")
    for value in words.values("display"):
        given = properties(value, "type")
        if given.get("type") not in WITHOUT_GL and given.get("gl") not in ON:
            raise UsageError(f"-display {value}: a vhost-user display needs GL: {remedy}")
    if words.has("spice") and words.property("spice", "gl") not in ON:
        raise UsageError(f"-spice: a vhost-user display needs GL: add gl=on, or {remedy}")
    arguments = [] if words.has("vga") or has_vga(words) else ["-vga", "none"]
    if not words.has("display", "nographic", "spice"):
        shown = "gtk,gl=on" if any(environment.get(name) for name in SESSIONS) else "none"
        arguments += ["-display", shown]
    return arguments
