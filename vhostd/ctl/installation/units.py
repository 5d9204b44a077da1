"""Adapts the systemd units to the program's place, and to the system's or a user's service manager."""

import re
from pathlib import Path

from vhostd.errors import SetupError

SHIPPED_FOLDER = "/usr/bin"  # the programs' folder in the shipped units

# Settings that a user's service manager cannot apply, or only in a user namespace, with their comments. The
# second paragraph of a unit's comment tells how to lift such a setting.
SYSTEM_ONLY = re.compile(
    r"^(?:DynamicUser|SupplementaryGroups|SocketGroup|RemoveIPC"
    r"|(?:Capability|Device|IPAddress|Private|Proc|Protect)\w+)=.*\n"
    r"|^# .* this group\.\n"
    r"|^#\n(?:#.*\n)+",
    re.MULTILINE,
)
# Root's own service manager has capabilities. The program itself gives them up there, by capset.
DENIED = "SystemCallFilter=~@privileged @resources\n"
GIVEN_UP = "SystemCallFilter=capset\n"
USER_PLACES = {
    "=-/etc/": "=-%E/",
    "/etc/": "~/.config/",
    "/var/lib/": "%S/",
    ": systemctl ": ": systemctl --user ",
}


def unit(text: str, program: Path, *, user: bool) -> str:
    """The text of a shipped unit, with this program's path instead of the one in /usr/bin."""
    if user:
        text = SYSTEM_ONLY.sub("", text).replace(DENIED, DENIED + GIVEN_UP)
        for ours, theirs in USER_PLACES.items():
            text = text.replace(ours, theirs)
    return re.sub(
        rf"(?<==){SHIPPED_FOLDER}/{re.escape(program.name)}(?![\w-])", lambda _: _word(program), text
    )


def _word(path: Path) -> str:
    """The path in the syntax of systemd.syntax(7): % is doubled, and a path with blanks is quoted."""
    word = str(path).replace("%", "%%")
    if set(word) & set("\"'\\"):
        raise SetupError(f"systemd starts no program with a quote or a backslash in its path: move {path}")
    return f'"{word}"' if " " in word else word
