"""JSON by RFC 8259, and as libvirt's parser reads it; mostly the parser accepts more.

libvirt's parser is json-c, whose versions differ. Before, it was yajl, which is as strict as the RFC.
"""

import json
import re
from typing import Any, NamedTuple, NoReturn

NESTED = 32  # nesting depth, at most, for libvirt
LIMIT = 1 << 20  # bytes that libvirt reads of a description
DIGITS = 20
MIN, MAX = -(1 << 63), (1 << 64) - 1
MARK = b"\xef\xbb\xbf"
TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[{]|[\]}]|[^][{}",:\s]+', re.DOTALL)
INTEGER = re.compile(r"-?[0-9]+")
IS_NAME = re.compile(r"\s*:")
CONTROL = re.compile(r"[\x00-\x1f]")
BEYOND_ASCII = re.compile(r"[^\x00-\x7f]")
LONE = re.compile(r"[\ud800-\udfff]")  # surrogates: no characters, and no file name has them


class NotJson(ValueError):
    """A text that is not JSON; the message names the place of the fault."""


class Dialect(NamedTuple):
    """A parser, such as `json-c 0.18`, and what it refuses that others accept. Without a name: no parser.

    Here a name is the name of an object's member.
    """

    name: str = ""
    lax: bool = True  # accepts more than the RFC
    long_integers: bool = False  # refuses integers of more than 64 bits
    control_in_strings: bool = False
    control_in_names: bool = False
    beyond_ascii: bool = False  # refuses it in strings that are not names


TOLERANT = Dialect()
YAJL = Dialect("yajl", lax=False)
# By the last digit of the library's version, as in libjson-c.so.5.4. A newer version counts as the last one
# here. On machines with an unsigned char, 0.18 accepts characters beyond ASCII.
JSON_C = {
    1: Dialect("json-c 0.15"),
    2: Dialect("json-c 0.16"),
    3: Dialect("json-c 0.17", long_integers=True),
    4: Dialect("json-c 0.18", long_integers=True, control_in_strings=True, beyond_ascii=True),
    5: Dialect("json-c 0.19", long_integers=True, control_in_strings=True, control_in_names=True),
}


def read(data: bytes) -> Any:
    """Reads JSON by the RFC, in which no object has a name twice; raises NotJson."""
    return _load(_text(data), strict=True, parse_constant=_refuse_constant, object_pairs_hook=_refuse_twice)


def read_as_libvirt(data: bytes, dialect: Dialect = TOLERANT) -> Any:
    """Reads a text as libvirt does: up to a NUL; of two equal names the last counts. Raises NotJson."""
    text = _text(data.partition(b"\0")[0])
    value = _load(text, strict=False) if dialect.lax else read(text.encode())
    if value is None:
        raise NotJson("it is null")
    for token in TOKEN.finditer(text):
        if (fault := _refusal(token, dialect)) is not None:
            place = _place(text[: token.start() + fault[0]])
            raise NotJson(f"{place}: {fault[1]}, which {dialect.name} refuses")
    return value


def _refusal(token: re.Match[str], dialect: Dialect) -> tuple[int, str] | None:
    """The place in a token of what the parser refuses, and its description; None if it accepts the token."""
    text = token[0]
    if not text.startswith('"'):
        is_long = INTEGER.fullmatch(text) and (len(text) > DIGITS or not MIN <= int(text) <= MAX)
        return (0, "an integer of more than 64 bits") if is_long and dialect.long_integers else None
    is_name = IS_NAME.match(token.string, token.end())
    no_control = dialect.control_in_names if is_name else dialect.control_in_strings
    if no_control and (found := CONTROL.search(text)):
        return found.start(), "a control character"
    if dialect.beyond_ascii and not is_name and (found := BEYOND_ASCII.search(text)):
        return found.start(), f"{found[0]!r} (write {json.dumps(found[0])[1:-1]})"
    return None


def word(value: object) -> str | None:
    """A string as libvirt reads it: up to a NUL, without lone surrogates. None if it is not a string."""
    return LONE.sub("\ufffd", value.partition("\0")[0]) if isinstance(value, str) else None


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
    """A number; a very long one as a float, since Python refuses to convert it to int."""
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
    """The message of Python's json as the end of a sentence."""
    return message[:1].lower() + message[1:].replace(" (char 0)", "")


def _place(before: str) -> str:
    return f"line {before.count(chr(10)) + 1}, column {len(before) - before.rfind(chr(10))}"


def _refuse_constant(name: str) -> NoReturn:
    raise NotJson(f"{name} is no value of JSON")


def _refuse_twice(members: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in members:
        if name in found:
            raise NotJson(f"an object has {json.dumps(name)} twice")
        found[name] = value
    return found
