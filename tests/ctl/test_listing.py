"""vhostctl list: what is printed of what libvirt finds."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.ctl import matrix
from tests.ctl.libvirt.test_host import put_libvirt
from tests.ctl.programs import answering, script
from tests.programs import environment, executable
from vhostd.ctl import listing, main
from vhostd.ctl.libvirt import folders


class Machine:
    """Folders of descriptions that the program takes for libvirt's, and programs."""

    def __init__(self, root: Path, capfd: pytest.CaptureFixture[str]) -> None:
        self.root = root
        self.share, self.etc = root / matrix.SHARE, root / matrix.ETC
        self.programs = root / "bin"
        for folder in (self.share, self.etc, self.programs):
            folder.mkdir(parents=True)
        self._capfd = capfd

    def describe(self, name: str, kind: str, binary: Path | str, folder: Path | None = None) -> Path:
        path = (folder or self.etc) / name
        path.write_text(json.dumps({"description": "it", "type": kind, "binary": str(binary)}))
        return path

    def list(self, *options: str) -> tuple[int, list[str], str]:
        """The status, the lines printed, and the line on stderr."""
        self._capfd.readouterr()
        status = main(["list", *options])
        printed, error = self._capfd.readouterr()
        assert error.count("\n") == status
        return status, printed.splitlines(), error.strip()

    def report(self, *options: str) -> Any:
        """The JSON document, and its entries by name."""
        return json.loads("\n".join(self.list("--json", *options)[1]))

    def entries(self, *options: str) -> dict[str, Any]:
        return {Path(each["path"]).name: each for each in self.report(*options)["entries"]}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Machine:
    made = Machine(tmp_path, capfd)
    monkeypatch.setattr(folders, "SYSTEM", (made.share, made.etc))
    monkeypatch.setattr(listing, "hazards", lambda entry: iter(()))
    monkeypatch.setattr(listing, "has_render_node", lambda: False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return made


# --- States ---------------------------------------------------------------------------------------------


def test_nothing_is_there(machine: Machine) -> None:
    status, printed, _ = machine.list()
    assert status == 0
    assert printed[0].startswith(f"libvirt (qemu:///system) reads {machine.share}, {machine.etc}")
    assert printed[1:] == ["no descriptions"]


def test_every_state(machine: Machine) -> None:
    good = answering(machine.programs / "good", '{"type": "gpu", "features": ["virgl"]}')
    node = answering(machine.programs / "node", '{"type": "gpu", "features": ["render-node"]}')
    machine.describe("10-bad.json", "gpu", script(machine.programs / "bad", "exit 3"))
    machine.describe("20-good.json", "gpu", good, machine.share)
    machine.describe("20-good.json", "gpu", good)
    machine.describe("30-node.json", "gpu", node)
    machine.describe("40-masked.json", "gpu", good, machine.share)
    (machine.etc / "40-masked.json").touch()
    machine.describe("50-disk.json", "block", good)
    machine.describe("60-fs.json", "fs", "/nowhere/virtiofsd")
    (machine.etc / "70-folder").mkdir()
    status, printed, _ = machine.list()
    assert status == 0
    assert [line for line in printed[1:] if not line.startswith(" ")] == [
        f"skipped   gpu     {machine.etc}/10-bad.json -> {machine.programs}/bad",
        f"replaced  -       {machine.share}/20-good.json",
        f"used      gpu     {machine.etc}/20-good.json -> {good}",
        f"spare     gpu     {machine.etc}/30-node.json -> {node}",
        f"masked    -       {machine.share}/40-masked.json",
        f"mask      -       {machine.etc}/40-masked.json",
        f"unused    block   {machine.etc}/50-disk.json -> {good}",
        f"fails     fs      {machine.etc}/60-fs.json -> /nowhere/virtiofsd",
        f"ignored   -       {machine.etc}/70-folder",
    ]
    assert f"{'':18}it exits with status 3" in printed
    assert f"{'':18}features: virgl" in printed


def test_what_breaks_it_is_told_with_what_that_costs(machine: Machine) -> None:
    good = answering(machine.programs / "good", '{"type": "gpu", "features": []}')
    machine.describe("10-good.json", "gpu", good)
    machine.describe("50-sound.json", "sound", "/usr/bin/sound")
    (machine.etc / "README").write_text("Descriptions\n")
    status, printed, error = machine.list()
    assert status == 1
    assert printed[1].startswith("It stops at the files marked `breaks`")
    assert f"breaks    -       {machine.etc}/50-sound.json" in printed
    assert error == (
        f"vhostctl: error: {machine.etc}/50-sound.json: its type is 'sound', which libvirt does not know "
        "(and 1 more): libvirt starts no domain with a vhost-user video device or virtiofs"
    )
    assert machine.report()["works"] is False


def test_one_type_alone_and_what_breaks_all(machine: Machine) -> None:
    machine.describe("10-disk.json", "block", "/usr/bin/disk")
    machine.describe("20-input.json", "input", "/usr/bin/input")
    (machine.etc / "README").write_text("Descriptions\n")
    assert list(machine.entries("--type=block")) == ["10-disk.json", "README"]


# --- Asking ---------------------------------------------------------------------------------------------


def test_only_those_are_asked_that_libvirt_asks(machine: Machine) -> None:
    disk = script(machine.programs / "disk", f"touch {machine.root}/asked; exit 1")
    machine.describe("10-disk.json", "block", disk)
    assert machine.entries()["10-disk.json"]["seconds"] is None
    assert not (machine.root / "asked").exists()
    entry = machine.entries("--probe")["10-disk.json"]
    assert (machine.root / "asked").exists()
    assert entry["state"] == "unused"
    assert entry["warnings"] == ["it exits with status 1", "what it prints is not JSON: it is empty"]


def test_a_name_that_no_program_can_have(machine: Machine) -> None:
    good = answering(machine.programs / "good", '{"type": "gpu", "features": []}')
    for number, binary in enumerate(("/\ud800", "a/\ud800", "\ud800", "/\udc80")):
        machine.describe(f"{number}-a.json", "gpu", binary)
    machine.describe("9-a.json", "gpu", good)
    entries = list(machine.entries().values())
    assert [(each["state"], each["reason"]) for each in entries] == [
        ("skipped", "/\ufffd cannot be started: No such file or directory"),
        ("skipped", "/a/\ufffd cannot be started: No such file or directory"),
        ("skipped", "there is no program '\ufffd'"),
        ("skipped", "/\ufffd cannot be started: No such file or directory"),
        ("used", ""),
    ]


def test_what_others_would_mind_is_a_warning(machine: Machine) -> None:
    program = answering(machine.programs / "it", '{"type": "input", "features": ["no-grab"]}')
    machine.describe("10-a.json~", "gpu", program)
    entry = machine.entries()["10-a.json~"]
    assert entry["state"] == "used"
    assert entry["features"] == ["no-grab"]
    assert 0 < entry["seconds"] < 10
    assert entry["warnings"] == [
        "libvirt reads it whatever its name ends in: remove it if it is a copy",
        'it calls itself a program of type "input"',
    ]


def test_hazards_of_what_the_system_s_libvirt_may_start_are_warnings(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "hazards", lambda entry: iter([f"{entry.binary} is closed"]))
    good = answering(machine.programs / "good", '{"type": "gpu", "features": []}')
    machine.describe("10-a.json", "gpu", good)
    machine.describe("20-a.json", "gpu", "/nowhere")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert [each["warnings"] for each in machine.entries().values()] == [[f"{good} is closed"], []]
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert [each["warnings"] for each in machine.entries().values()] == [[], []]


def test_a_user_has_a_folder_of_their_own(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    own = machine.root / "config/qemu/vhost-user"
    own.mkdir(parents=True)
    machine.describe("10-a.json", "block", "/usr/bin/disk", own)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert machine.report()["entries"] == []
    assert machine.report()["connection"] == "qemu:///system"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert machine.report()["connection"] == "qemu:///session"
    assert machine.report()["folders"] == [str(machine.share), str(machine.etc), str(own)]
    assert list(machine.entries()) == ["10-a.json"]


# --- Another root ---------------------------------------------------------------------------------------


@pytest.fixture
def image(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Machine:
    return Machine(tmp_path, capfd)


def test_an_image_is_looked_at_and_nothing_in_it_runs(image: Machine) -> None:
    script(image.programs / "gpu", f"touch {image.root}/asked")
    (image.root / "usr/bin").symlink_to("/bin")
    image.describe("10-a.json", "gpu", "/usr/bin/gpu")
    image.describe("20-a.json", "gpu", "/usr/bin/none")
    image.describe("30-a.json", "fs", "/usr/share")
    image.describe("40-a.json", "gpu", "gpu")
    (image.etc / "50-a.json").write_text('{"type": "gpu"}')
    image.describe("60-a.json", "gpu", "/\ud800")
    entries = image.entries(f"--root={image.root}")
    assert {name: (each["state"], each["reason"]) for name, each in entries.items()} == {
        "10-a.json": ("candidate", "what libvirt makes of it depends on what it answers there"),
        "20-a.json": ("skipped", "/usr/bin/none: No such file or directory"),
        "30-a.json": ("fails", "/usr/share is no program"),
        "40-a.json": ("candidate", "what libvirt makes of it depends on what it answers there"),
        "50-a.json": ("skipped", "it names no program"),
        "60-a.json": ("skipped", "/\ufffd: No such file or directory"),
    }
    assert not (image.root / "asked").exists()
    assert image.report(f"--root={image.root}")["folders"] == [
        "/usr/share/qemu/vhost-user",
        "/etc/qemu/vhost-user",
    ]


def test_an_image_that_breaks_it(image: Machine) -> None:
    (image.etc / "README").write_text("Descriptions\n")
    status, _, error = image.list(f"--root={image.root}")
    assert status == 1
    assert error.startswith("vhostctl: error: /etc/qemu/vhost-user/README: it is not JSON: line 1, column 1:")


def test_the_libvirt_of_an_image_is_the_one_that_counts(image: Machine) -> None:
    put_libvirt(image.root, "libjson-c.so.5", "4.0")
    (image.etc / "10-a.json").write_text('{"description": "écran", "type": "gpu", "binary": "/usr/bin/gpu"}')
    (entry,) = image.entries(f"--root={image.root}").values()
    reason = "it is not JSON: line 1, column 18: 'é' (write \\u00e9), which json-c 0.18 refuses"
    assert (entry["state"], entry["reason"]) == ("breaks", reason)
    escaped = '{"description": "\\u00e9cran", "type": "gpu", "binary": "gpu"}'
    (image.etc / "10-a.json").write_text(escaped)
    (entry,) = image.entries(f"--root={image.root}").values()
    assert entry["state"] == "candidate"


def test_a_root_that_is_none(image: Machine) -> None:
    assert image.list(f"--root={image.root}/no") == (1, [], f"vhostctl: error: {image.root}/no is no folder")


# --- The program ----------------------------------------------------------------------------------------


def run(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [executable("vhostctl"), *arguments], capture_output=True, env=environment(variables), timeout=60
    )


@pytest.mark.parametrize(
    "variables",
    [{}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, {"LC_ALL": "C", "PYTHONUTF8": "1"}],
)
def test_odd_names_do_not_garble_a_terminal(image: Machine, variables: dict[str, str]) -> None:
    names = (b"10-\x1b[31m\n.json", b"20-\xff.json", "30-é.json".encode(), "40-\u202e.json".encode())
    for name in names:
        image.describe(os.fsdecode(name), "gpu", "/usr/bin/\x1b[0m\n")
    image.describe("50-a.json", "gpu\x1b]0;title\x07", "/usr/bin/it")
    for options in ([], ["--json"]):
        done = run("list", f"--root={image.root}", *options, **variables)
        text = done.stdout.decode() + done.stderr.decode()
        assert done.returncode == 1
        assert done.stderr.count(b"\n") == 1
        assert text.replace("\n", "").isprintable()
        assert "10-" in text


@pytest.mark.parametrize("options", [["--json"], []])
def test_nobody_needs_to_read_it_all(image: Machine, options: list[str]) -> None:
    for number in range(2000):
        image.describe(f"{number}.json", "block", "/usr/bin/disk")
    with subprocess.Popen(
        [executable("vhostctl"), "list", f"--root={image.root}", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    ) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 0


@pytest.mark.parametrize(
    "arguments",
    [["--type"], ["--type=sound"], ["--typ=gpu"], ["\x1b[31m"], ["--root"], ["--root=/", "--probe"]],
)
def test_a_command_line_that_makes_no_sense(arguments: list[str]) -> None:
    done = run("list", *arguments)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"\x1b" not in done.stderr
    assert done.stderr.startswith(b"vhostctl: error: ")
    assert done.stderr.count(b"\n") == 1
