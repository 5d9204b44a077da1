"""The completions, as the shells understand them."""

import shlex
import subprocess
from pathlib import Path

import pytest

from tests.ctl.commands import NAMES, program, tool
from vhostd.ctl.installation.commandline import Command, read
from vhostd.ctl.installation.completion import bash, fish, zsh

SHELLS = {"bash": bash, "zsh": zsh, "fish": fish}
TOOL = read(tool(), "a-tool")


def run(*command: str, cwd: Path) -> list[str]:
    """What a shell prints; it must have nothing to complain of, and run nothing that a help text says."""
    env = {"PATH": "/usr/bin:/bin", "HOME": str(cwd), "LC_ALL": "C.UTF-8"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env, cwd=cwd)
    assert done.stderr == ""
    return done.stdout.splitlines()


def offered_by_bash(command: Command, words: list[str], cwd: Path) -> set[str]:
    """What bash offers for the last of the words, which it has split as it does a command line."""
    code = f"""
        source /dev/stdin <<'END'
{bash(command)}
END
        COMP_WORDS=({shlex.join(words)}) COMP_CWORD={len(words) - 1}
        "$(complete -p {command.name} | sed 's/.*-F \\([^ ]*\\).*/\\1/')"
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    return set(filter(None, run("bash", "--norc", "-c", code, cwd=cwd)))


def offered_by_fish(command: Command, line: str, cwd: Path) -> set[str]:
    (cwd / "completion.fish").write_text(fish(command))
    code = f"source completion.fish; complete -C {shlex.quote(line)}"
    return {offer.partition("\t")[0] for offer in run("fish", "--no-config", "-c", code, cwd=cwd)}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shell", SHELLS)
def test_shells_can_read_them(name: str, shell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = read(program(name, tmp_path / "bin", monkeypatch).parser, name)
    (tmp_path / "file").write_text(SHELLS[shell](command))
    assert run(shell, "-n", "file", cwd=tmp_path) == []


@pytest.mark.parametrize("name", NAMES)
def test_every_option_is_offered(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = read(program(name, tmp_path / "bin", monkeypatch).parser, name)
    for inner in (command, *command.commands):
        path = [name] if inner is command else [name, inner.name]
        flags = {flag for option in inner.options for flag in option.flags if flag.startswith("--")}
        assert {
            word for word in offered_by_bash(command, [*path, "-"], tmp_path) if word.startswith("--")
        } == flags
        assert offered_by_fish(command, f"{' '.join(path)} --", tmp_path) >= flags


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--log-level", ""], {"debug", "info", "warning", "error"}),
        (["--log-level", "=", "w"], {"warning"}),
        (["--log-level", "="], {"debug", "info", "warning", "error"}),
        (["--fd", ""], set()),
        (["--fd", "="], set()),
        (["--fd", "=", "3", "--print-"], {"--print-capabilities"}),
        (["--socket-path", "s"], {"some file", "sub"}),
        (["--socket-path", "=", "so"], {"some file"}),
        (["--socket-mode", "=", "0660", "--socket-group", "=", "roo"], {"root"}),
    ],
)
def test_values_in_bash(
    words: list[str], expected: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "some file").touch()
    (tmp_path / "sub").mkdir()
    command = read(program("vhost-user-rng", tmp_path / "bin", monkeypatch).parser, "vhost-user-rng")
    assert offered_by_bash(command, ["vhost-user-rng", *words], tmp_path) == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([""], {"-h", "--help", "--verbose", "-v", "run", "stop"}),
        (["s"], {"stop"}),
        (["-v", "stop", "-"], {"-h", "--help"}),
        (["run", "--co"], {"--colour"}),
        (["run", "--colour", "="], {"red", "green"}),
        (["run", "--into", ""], {"sub"}),
        (["run", "fi"], {"file"}),
        (["run", "-v", "--into", "=", "sub", "fi"], {"file"}),
        (["stop", "fi"], set()),
        (["run", "--number", ""], set()),
    ],
)
def test_commands_in_bash(words: list[str], expected: set[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "sub").mkdir()
    assert offered_by_bash(TOOL, ["a-tool", *words], tmp_path) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a-tool ", {"run", "stop"}),
        ("a-tool --ver", {"--verbose"}),
        ("a-tool run --colour ", {"red", "green"}),
        ("a-tool run --into s", {"sub/"}),
        ("a-tool run --group roo", {"root"}),
        ("a-tool run fi", {"file"}),
        ("a-tool stop fi", set()),
        ("a-tool stop --co", set()),
    ],
)
def test_commands_in_fish(line: str, expected: set[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "sub").mkdir()
    assert offered_by_fish(TOOL, line, tmp_path) == expected


# zsh completes in its line editor only; what it is told is looked at, with its own function replaced.
TOLD = "_arguments() { printf '%s\\n' \"$@\"; state=command }; source ./completion "


def told_to_zsh(command: Command, words: str, cwd: Path) -> list[str]:
    (cwd / "completion").write_text(zsh(command))
    return run("zsh", "-f", "-c", f"words=({words}); {TOLD}", cwd=cwd)


def test_what_zsh_is_told(tmp_path: Path) -> None:
    told = told_to_zsh(TOOL, "run", tmp_path)
    assert told[0] == "-C"
    assert '--verbose[say \\[more\\]\\: it\'s $HOME `id` \\\\ "all"]' in told
    assert "--colour=[default\\: red]:red:(red green)" in told
    assert "--into=[.a folder]:DIR:_files -/" in told
    assert "--group=['a group]:GROUP:_groups" in told
    assert "*:FILE:_files" in told
    assert not [line for line in told if "hidden" in line]


def test_what_zsh_evaluates_once_more(tmp_path: Path) -> None:
    (commands,) = [line for line in told_to_zsh(TOOL, "stop", tmp_path) if line.startswith("1:command:((")]
    words = commands.removeprefix("1:command:((").removesuffix("))").replace("\\:", ":")
    said = run("zsh", "-f", "-c", f"ws=({words}); printf '%s\\n' $ws", cwd=tmp_path)
    assert said == ["run:Runs `a: file`.", "stop:Stops it."]


def test_a_command_line_after_the_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs and files are offered for what `vhostctl run` starts."""
    (tmp_path / "cat.img").touch()
    command = read(program("vhostctl", tmp_path / "bin", monkeypatch).parser, "vhostctl")
    words = ["vhostctl", "run", "--disk", "=", "a", "--", "ca"]
    assert offered_by_bash(command, words, tmp_path) >= {"cat", "cat.img"}
    assert offered_by_fish(command, "vhostctl run --disk=a -- ca", tmp_path) >= {"cat", "cat.img"}
    assert "*::QEMU:_normal" in told_to_zsh(command, "run", tmp_path)
