"""Golden bytes: structs written out by hand from the specification, field by field.

Each line is bytes in hexadecimal, `* 4` for four times the same, then what they are: "name = value", which is
checked, or a remark.
"""

import re
from typing import NamedTuple

from vhostd import Layout

LINE = re.compile(r"(?P<bytes>[0-9a-f]{2}(?: [0-9a-f]{2})*)(?: \* (?P<times>\d+))?  +(?P<what>.+)")
FIELD = re.compile(r"(\w+) = (\w+)")


class Golden(NamedTuple):
    """A struct's bytes, and what its fields are to be: numbers, or bytes where it has an array."""

    name: str
    layout: type[Layout]
    data: bytes
    fields: dict[str, tuple[int, bytes]]

    def check(self) -> None:
        """Fails unless the layout reads and writes just these bytes, and knows every field."""
        assert len(self.data) == self.layout.SIZE
        assert tuple(self.fields) == self.layout.FIELDS
        decoded = self.layout.unpack(self.data)
        for name, (value, data) in self.fields.items():
            assert int.from_bytes(data, "little") == value, f"{name}: the vector contradicts itself"
            found = getattr(decoded, name)
            assert found == (value if isinstance(found, int) else data), name
        assert decoded.pack() == self.data


def golden(layout: type[Layout], text: str, name: str = "") -> Golden:
    """A vector from its lines."""
    whole, fields = b"", {}
    for line in text.strip().splitlines():
        parsed = LINE.fullmatch(line.strip())
        assert parsed, line
        data = bytes.fromhex(parsed["bytes"]) * int(parsed["times"] or 1)
        whole += data
        if field := FIELD.match(parsed["what"]):
            fields[field[1]] = int(field[2], 0), data
    return Golden(name or layout.__name__, layout, whole, fields)
