"""The manual pages: what is in them, and what two formatters and a linter say of them."""

import inspect
import re
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

import vhost_user_blk
import vhostd
from tests.ctl.commands import NAMES, program, tool
from vhostd import Device, DeviceType, Manifest, ctl
from vhostd.ctl.installation.commandline import read
from vhostd.ctl.installation.manual import manual
from vhostd.ctl.installation.programs import Program

FILES = (Path("/etc/one-file.json"), Path("/etc/another"))


def page_of(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    return manual(program(name, tmp_path, monkeypatch), FILES, ["vhost-user-one", "vhostctl"])


def rendered(page: str, *command: str) -> str:
    """What a formatter makes of it, without its bold and underlined letters; it must not complain."""
    done = subprocess.run(command, input=page, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return re.sub(r".\x08|\x1b\[[\d;]*m", "", done.stdout)


def sections(text: str) -> dict[str, str]:
    """The sections of a page as a reader sees it."""
    parts = re.split(r"^([A-Z][A-Z ]+)\n", text, flags=re.MULTILINE)
    return {title: " ".join(body.split()) for title, body in zip(parts[1::2], parts[2::2], strict=True)}


@pytest.mark.parametrize("name", NAMES)
def test_nobody_complains_of_it(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = page_of(name, tmp_path, monkeypatch)
    (tmp_path / "page.1").write_text(page)
    lint = ["mandoc", "-T", "lint", "-W", "style", str(tmp_path / "page.1")]
    done = subprocess.run(lint, capture_output=True, text=True, check=False)
    # References to pages that this machine does not have are none of the page's faults.
    complaints = [line for line in done.stdout.splitlines() if "referenced manual not found" not in line]
    assert (complaints, done.stderr) == ([], "")
    rendered(page, "groff", "-man", "-ww", "-T", "utf8")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("formatter", ["groff -man -T utf8", "mandoc -T utf8"], ids=["groff", "mandoc"])
def test_it_says_what_the_parser_says(
    name: str, formatter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = sections(rendered(page_of(name, tmp_path, monkeypatch), *formatter.split()))
    command = read(program(name, tmp_path, monkeypatch).parser, name)
    assert found["NAME"].startswith(f"{name} - ")
    assert found["SYNOPSIS"].startswith(name)
    options = found["OPTIONS"] + found.get("COMMANDS", "")
    for each in (command, *command.commands):
        for option in each.options:
            assert f"{', '.join(option.flags)} {option.value}".strip() in options
            assert " ".join(option.help.replace("`", "").split()) in options
    for inner in command.commands:
        assert f"{inner.name} {inner.description.replace('`', '')}" in found["COMMANDS"]
    assert [part[0] for part in re.findall(r"\b([012]) +\w+", found["EXIT STATUS"])] == ["0", "1", "2"]
    assert found["FILES"] == "/etc/one-file.json /etc/another"
    assert "vhost-user-one(1)" in found["SEE ALSO"]
    assert f"vhostd {vhostd.__version__}" in page_of(name, tmp_path, monkeypatch)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "vhostctl"])
def test_examples_come_from_the_docstring(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = rendered(page_of(name, tmp_path, monkeypatch), "groff", "-man", "-T", "ascii")
    examples = sections(text)["EXAMPLES"]
    assert examples.startswith(f"{name} --socket-path=/tmp/")
    assert "qemu-system-x86_64 " in examples
    assert "share=on" in examples
    assert "-->" not in examples, "a drawing is none"


def test_examples_need_no_indentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From 3.13 on Python takes it from a docstring whose lines all have it."""
    before = page_of("vhost-user-blk", tmp_path, monkeypatch)
    assert vhost_user_blk.__doc__ is not None
    monkeypatch.setattr(vhost_user_blk, "__doc__", inspect.cleandoc(vhost_user_blk.__doc__))
    after = page_of("vhost-user-blk", tmp_path, monkeypatch)
    assert ".SH EXAMPLES" in after
    assert after == before


def test_options_are_typed_as_they_are_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Formatters turn a hyphen that is not said to be a minus into what no shell understands."""
    text = rendered(page_of("vhost-user-rng", tmp_path, monkeypatch), "groff", "-man", "-T", "utf8")
    assert "--socket-path=/tmp/rng.sock" in text
    assert "Without --socket-path and --fd" in " ".join(text.split())


def test_what_could_be_taken_for_a_macro(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Program, "parser", property(lambda _: tool()))
    page = manual(Program("a-tool", Path("/usr/bin/a-tool"), ctl, None), [], [])
    text = " ".join(rendered(page, "groff", "-man", "-ww", "-T", "ascii").split())
    for expected in (
        "--into DIR .a folder",
        "--group GROUP 'a group",
        'say [more]: it\'s $HOME id \\ "all"',
        "Runs a: file.",
        "--colour {red,green} default: red",
        "--number N [N ...] numbers",
        "FILE what to run",
        "It's the end.",
    ):
        assert expected in text
    assert "hidden" not in text
    assert "FILES" not in text


def test_a_day_that_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    first, _, _ = page_of("vhost-user-gpu", tmp_path, monkeypatch).partition("\n")
    assert " 1970-01-02 " in first


def test_a_docstring_without_examples() -> None:
    class Plain(Device):
        """a device"""

        kind = DeviceType.RNG

    manifest = Manifest("rng", Plain)
    plain = Program("vhost-user-plain", Path("/usr/bin/vhost-user-plain"), ModuleType("plain"), manifest)
    page = manual(plain, [], [])
    assert "EXAMPLES" not in page
    assert "vhost\\-user\\-plain" in page
