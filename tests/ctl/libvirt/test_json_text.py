"""JSON by the RFC, and as libvirt takes it."""

import json
import sys
import time
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostd.ctl.libvirt.json_text import NESTED, NotJson, read, read_as_libvirt, word

# Behind the second line's `"a": 1`, in the words of Python's json.
TRAILING_COMMA = (
    "line 2, column 9: illegal trailing comma before end of object"
    if sys.version_info >= (3, 13)
    else "line 3, column 1: expecting property name enclosed in double quotes"
)
FAULTY = {
    "empty": (b"", "it is empty"),
    "white space": (b" \n", "it is empty"),
    "text": (b"gpu", "line 1, column 1: expecting value"),
    "cut": (b'{"type": "gpu"', "line 1, column 15: expecting ',' delimiter"),
    "trailing comma": (b'{\n  "a": 1,\n}', TRAILING_COMMA),
    "text behind it": (b'{}\n{"a": 1}', "line 2, column 1: extra data"),
    "byte order mark": (b"\xef\xbb\xbf{}", "it begins with a byte order mark: save it without one"),
    "Latin-1": (b'{\n"a": "caf\xe9"}', "line 2, column 10: it is not UTF-8"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "line 1, column 1: it is not UTF-8"),
    "too deep": (
        b"[" * 100_000,
        f"line 1, column {NESTED + 1}: more than {NESTED} values are within each other",
    ),
}
ONLY_LIBVIRT = {
    "duplicate": (b'{"a": 1, "a": 2}', {"a": 2}, 'an object has "a" twice'),
    "constant": (b'{"a": Infinity}', {"a": float("inf")}, "Infinity is no value of JSON"),
    "line break": (b'{"a": "b\nc"}', {"a": "b\nc"}, "line 1, column 9: invalid control character at"),
    "text behind a NUL": (b"[]\0end", [], "line 1, column 3: extra data"),
}
NUMBERS = st.integers(-(10**17), 10**17) | st.floats(allow_nan=False, allow_infinity=False)
DOCUMENTS = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@pytest.mark.parametrize(("data", "message"), FAULTY.values(), ids=FAULTY)
def test_what_is_not_json_for_anybody(data: bytes, message: str) -> None:
    for reader in (read, read_as_libvirt):
        with pytest.raises(NotJson) as refused:
            reader(data)
        assert str(refused.value) == message


@pytest.mark.parametrize(("data", "value", "message"), ONLY_LIBVIRT.values(), ids=ONLY_LIBVIRT)
def test_what_is_json_for_libvirt_alone(data: bytes, value: Any, message: str) -> None:
    assert read_as_libvirt(data) == value
    with pytest.raises(NotJson) as refused:
        read(data)
    assert str(refused.value) == message


def test_a_name_is_twice_among_very_many() -> None:
    members = [f'"{number:x}":0' for number in range(110_000)]
    start = time.process_time()
    with pytest.raises(NotJson, match='an object has "last" twice'):
        read(f'{{{",".join(members)},"last":1,"last":1}}'.encode())
    assert time.process_time() - start < 30  # a search for each takes minutes


def test_null_is_no_document_for_libvirt() -> None:
    assert read(b"null") is None
    with pytest.raises(NotJson, match="it is null"):
        read_as_libvirt(b"null\n")


@pytest.mark.parametrize(
    ("before", "inner", "behind"),
    [("[", "", "]"), ("[", "1", "]"), ('{"a":', "{}", "}"), ('{"a":', '"["', "}")],
)
def test_the_innermost_value_counts(before: str, inner: str, behind: str) -> None:
    outer = NESTED if not inner else NESTED - 1
    read_as_libvirt((before * outer + inner + behind * outer).encode())
    with pytest.raises(NotJson, match="within each other"):
        read_as_libvirt((before * (outer + 1) + inner + behind * (outer + 1)).encode())


def test_brackets_in_strings_and_closed_ones_do_not_count() -> None:
    wide = [{"a": "[" * 100, "\\": '"[['}] * 100
    assert read(json.dumps(wide).encode()) == wide


def test_long_numbers_are_no_trouble() -> None:
    assert read(b"[" + b"9" * 10_000 + b"]") == [float("inf")]
    assert read(b"[123456789]") == [123456789]


@given(DOCUMENTS)
def test_what_is_json_is_read_the_same_by_both(document: Any) -> None:
    data = json.dumps(document).encode()
    assert read(data) == document
    if document is not None:
        assert read_as_libvirt(data) == document


@given(st.binary() | st.text(alphabet='{}[],:"\\ \n0123NaN').map(str.encode))
def test_no_bytes_are_too_odd(data: bytes) -> None:
    for reader in (read, read_as_libvirt):
        with suppress(NotJson):
            reader(data)


def test_a_word_is_a_string_up_to_a_nul() -> None:
    assert word("gpu") == "gpu"
    assert word("gpu\0x") == "gpu"
    assert word("\ud800g\udc80\U0001f600") == "\ufffdg\ufffd\U0001f600"
    assert word(5) is None
    assert word(None) is None
