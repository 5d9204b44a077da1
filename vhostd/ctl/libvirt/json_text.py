"""JSON, as RFC 8259 has it, and as libvirt's parser (json-c) takes it, which lets some more pass.

Its versions differ about numbers such as 1. and 00, and about control characters in strings; libvirt from
before it used json-c is as strict as the RFC.
"""

import json
import re
from typing import Any, NoReturn

NESTED = 32  # values within values, at most, for libvirt
LIMIT = 1 << 20  # bytes that libvirt reads of a description
DIGITS = 20
MARK = b"\xef\xbb\xbf"
TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[{]|[\]}]|[^][{}",:\s]+', re.DOTALL)


class NotJson(ValueError):
    """A text that is not JSON; says where it goes wrong."""


def read(data: bytes) -> Any:
    """The value of a text that is JSON by the RFC, and has no name twice in an object; raises NotJson."""
    return _load(_text(data), strict=True, parse_constant=_refuse_constant, object_pairs_hook=_refuse_twice)


def read_as_libvirt(data: bytes) -> Any:
    """The value of a text as libvirt reads it, up to a NUL, and of a name twice the last; raises NotJson."""
    value = _load(_text(data.partition(b"\0")[0]), strict=False)
    if value is None:
        raise NotJson("it is null")
    return value


def word(value: object) -> str | None:
    """A string of libvirt's: it ends at a NUL. None if the value is no string."""
    return value.partition("\0")[0] if isinstance(value, str) else None


def _text(data: bytes) -> str:
    if data.startswith(MARK):
        raise NotJson("it begins with a byte order mark: save it without one")
    if not data.strip():
        raise NotJson("it is empty")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise NotJson(f"{_place(data[: error.start].decode())}: it is not UTF-8") from None


def _load(text: str, **how: Any) -> Any:
    _check_nesting(text)
    try:
        return json.loads(text, parse_int=_integer, **how)
    except json.JSONDecodeError as error:
        raise NotJson(f"{_place(text[: error.pos])}: {_plain(error.msg)}") from None


def _integer(digits: str) -> int | float:
    """Python refuses to convert very long ones."""
    return int(digits) if len(digits) < DIGITS else float(digits)


def _check_nesting(text: str) -> None:
    depth = 0
    for token in TOKEN.finditer(text):
        if token[0] in "]}":
            depth -= 1
        elif depth >= NESTED:
            raise NotJson(f"{_place(text[: token.start()])}: more than {NESTED} values are within each other")
        elif token[0] in "[{":
            depth += 1


def _plain(message: str) -> str:
    """The library's message as the end of a sentence of ours."""
    return message[:1].lower() + message[1:].replace(" (char 0)", "")


def _place(before: str) -> str:
    return f"line {before.count(chr(10)) + 1}, column {len(before) - before.rfind(chr(10))}"


def _refuse_constant(name: str) -> NoReturn:
    raise NotJson(f"{name} is no value of JSON")


def _refuse_twice(members: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(members)
    if len(found) < len(members):
        names = [name for name, _ in members]
        twice = next(name for name in names if names.count(name) > 1)
        raise NotJson(f"an object has {json.dumps(twice)} twice")
    return found
