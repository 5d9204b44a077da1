"""The systemd units as they are installed: for where the program is, and for whose service manager."""

import re
from pathlib import Path

from vhostd.errors import SetupError

SHIPPED_FOLDER = "/usr/bin"  # where the units that are shipped say that the programs are

# What a user's service manager cannot do, or could only do in a user namespace, and what is said of it: the
# second paragraph of a unit's comment has what it takes to be let out of that.
SYSTEM_ONLY = re.compile(
    r"^(?:DynamicUser|SupplementaryGroups|SocketGroup|RemoveIPC"
    r"|(?:Capability|Device|IPAddress|Private|Proc|Protect)\w+)=.*\n"
    r"|^# .* this group\.\n"
    r"|^#\n(?:#.*\n)+",
    re.MULTILINE,
)
# Root's own has capabilities, which the program gives up itself where nobody else has.
DENIED = "SystemCallFilter=~@privileged @resources\n"
GIVEN_UP = "SystemCallFilter=capset\n"
USER_PLACES = {
    "=-/etc/": "=-%E/",
    "/etc/": "~/.config/",
    "/var/lib/": "%S/",
    ": systemctl ": ": systemctl --user ",
}


def unit(text: str, program: Path, *, user: bool) -> str:
    """The text of a unit that is shipped, with this program in the place of the one in /usr/bin."""
    if user:
        text = SYSTEM_ONLY.sub("", text).replace(DENIED, DENIED + GIVEN_UP)
        for ours, theirs in USER_PLACES.items():
            text = text.replace(ours, theirs)
    return re.sub(
        rf"(?<==){SHIPPED_FOLDER}/{re.escape(program.name)}(?![\w-])", lambda _: _word(program), text
    )


def _word(path: Path) -> str:
    """The path as systemd.syntax(7) has it: a % is doubled, what separates words is quoted."""
    word = str(path).replace("%", "%%")
    if set(word) & set("\"'\\"):
        raise SetupError(f"systemd starts no program with a quote or a backslash in its path: move {path}")
    return f'"{word}"' if " " in word else word
