"""The parser of a program with commands; what one without has is tested by its options."""

import pytest

from vhostd.errors import UsageError
from vhostd.program.parser import Parser, examples


def tool() -> Parser:
    parser = Parser("tool")
    commands = parser.add_subparsers(required=True)
    show = commands.add_parser("show", allow_abbrev=False)
    show.add_argument("--json", action="store_true")
    show.add_argument("words", nargs="*")
    commands.add_parser("hide", allow_abbrev=False).add_argument("--deeply", action="store_true")
    return parser


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("show --jsn", "unknown option --jsn: did you mean --json\\?"),
        ("hide --deep", "unknown option --deep: did you mean --deeply\\?"),
        ("hide away", "unexpected word away"),
        ("seek", "invalid choice: 'seek'"),
        ("", "required"),
    ],
)
def test_commands(words: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        tool().parse_args(words.split())


def test_what_comes_after_two_dashes_is_no_option() -> None:
    assert tool().parse_args(["show", "--json", "--", "-version", "--jsn"]).words == ["-version", "--jsn"]


@pytest.mark.parametrize(
    "text", ["", "A lamp.", "A lamp.\n\nNo example.\n\n    vhost-user-lamp", "A.\n\n    lamp"]
)
def test_a_docstring_without_examples(text: str) -> None:
    assert examples(text) == []


@pytest.mark.parametrize("indent", ["    ", ""])
def test_examples_are_found_where_python_has_taken_their_indentation(indent: str) -> None:
    lines = ["vhost-user-lamp --dark", "", "qemu-system-x86_64 \\", "    -device lamp"]
    text = "\n".join(f"{indent}{line}" if line else "" for line in [*lines, "", "lamp --> light"])
    assert examples(f"A lamp.\n\n{text}") == lines
