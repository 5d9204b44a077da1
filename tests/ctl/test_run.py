"""vhostctl run: what is said of a command line before anything starts."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.ctl.machine.launched import command, environment, launched
from tests.ctl.programs import script
from tests.programs import PATIENCE, executable
from tests.programs import environment as user_environment
from vhostd import ctl
from vhostd.ctl.machine import running

PC = "qemu-system-x86_64"


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs `vhostctl run` in a folder, without a graphical session."""
    return subprocess.run(
        [executable("vhostctl"), "run", *words],
        cwd=folder,
        env=user_environment({**environment(folder), "DISPLAY": "", "WAYLAND_DISPLAY": ""}),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


@pytest.mark.parametrize(
    ("words", "status", "complaint"),
    [
        (("--disk", "a.img"), 2, "QEMU's command line is missing"),
        ((), 2, "QEMU's command line is missing"),
        (("--disk", "a.img", "--"), 2, "QEMU's command line is missing"),
        (("--disk", "a.img", "--", "-m", "1G"), 2, "-m: first name QEMU's program"),
        (("--disc", "a.img", "--", PC), 2, "--disc"),
        (("--disk", "--", PC), 2, "--disk"),
        (("--disk", "a.img,cahce=direct", "--", PC), 2, "--disk=a.img,cahce=direct: "),
        (("--disk", "a.img,cache=fast", "--", PC), 2, "--disk=a.img,cache=fast: "),
        (("--disk", "a.img,fd=0", "--", PC), 2, "--fd is not for a program"),
        (("--disk=", "--", PC), 2, "--blk-file"),
        (("--keyboard", PC, "-m", "1G"), 2, f"argument --keyboard: write -- before {PC}"),
        (("--display=fullscreen", "--", PC), 2, "--fullscreen"),
        (("--rng", "--", PC, "-m"), 2, "-m: QEMU wants a value after it"),
        (
            ("--rng", "--", PC, "-nographic", "--print"),
            2,
            "--print is an option of vhostctl: it goes before QEMU's program",
        ),
        (("--rng", "--", PC, "-m", "lots"), 2, "-m lots: not a size"),
        (("--rng", "--", PC, "-daemonize"), 2, "-daemonize"),
        (("--rng", "--", PC, "-mem-path", "/dev/shm"), 2, "-mem-path"),
        (("--rng", "--", PC, "-numa", "node,mem=1G"), 2, "-numa"),
        (("--rng", "--", PC, "-object", "memory-backend-ram,id=m,size=1G"), 2, "add share=on"),
        (("--rng", "--", PC, "-M", "microvm"), 2, "-machine microvm"),
        (("--rng", "--", PC, "-readconfig", "f"), 2, "-readconfig"),
        (("--display", "--", PC, "-display", "gtk"), 2, "-display gtk: a vhost-user display needs GL"),
        (("--display", "--", PC, "-vnc", ":1"), 2, "-vnc: QEMU cannot show"),
        (("--rng", "--print", "--libvirt", "--", PC), 2, "not allowed with argument"),
        (("--rng", "--file", "missing.toml"), 1, "--file=missing.toml: No such file or directory"),
        (("--file", "bad.toml"), 2, "bad.toml: disks is unknown: did you mean disk?"),
        (("--disk", "a.img\x1b[31m,cahce", "--", PC), 2, "a.img\\x1b[31m"),
    ],
)
def test_what_is_wrong_is_one_line(
    tmp_path: Path,
    words: tuple[str, ...],
    status: int,
    complaint: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(running, "run_machine", lambda *_: pytest.fail("it was started"))
    (tmp_path / "a.img").write_bytes(bytes(4096))
    (tmp_path / "bad.toml").write_text('disks = "a.img"')
    assert ctl.main(["run", *words]) == status
    output, errors = capfd.readouterr()
    assert output == ""
    (line,) = errors.splitlines()
    assert line.startswith("vhostctl: error: ")
    assert complaint in line


def test_the_options_of_a_device(tmp_path: Path) -> None:
    done = run(tmp_path, "--disk=help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "--cache" in done.stdout


@pytest.mark.parametrize("dashes", [["--"], []])
def test_the_dashes_may_be_left_out(tmp_path: Path, dashes: list[str]) -> None:
    (tmp_path / "a.img").write_bytes(bytes(4096))
    done = run(tmp_path, "--print", "--disk", "a.img", *dashes, PC, "-append", "x -- y", "--", "-m", "1G")
    line = next(line for line in done.stdout.splitlines() if line.startswith(PC))
    assert line.endswith(" -append 'x -- y' -- -m 1G")
    assert "size=1024M" not in line  # for QEMU takes `--` for an option with a value


def test_libvirt_s_xml_is_alone_on_stdout(tmp_path: Path) -> None:
    done = run(tmp_path, "--libvirt", "--rng", "--", PC)
    assert done.returncode == 0
    assert done.stdout.startswith("<domain ")
    assert done.stderr.splitlines()[1] == "  mkdir -p /run/vhost"


def test_a_console_needs_a_new_qemu(tmp_path: Path) -> None:
    """It is said before anything else, and with a domain's XML, whose QEMU is not known."""
    qemu = script(tmp_path / PC, "echo QEMU emulator version 10.0")
    done = run(tmp_path, "--console", "--", str(qemu))
    assert (done.returncode, done.stderr) == (
        1,
        f"vhostctl: error: --console needs QEMU 10.2, and {qemu} is 10.0\n",
    )
    assert "vhostctl: --console needs QEMU 10.2\n" in run(tmp_path, "--libvirt", "--console", "--", PC).stderr


@pytest.mark.parametrize("added", [(), ("--", "-m", "1G")])
def test_a_file_and_more(tmp_path: Path, added: tuple[str, ...]) -> None:
    """Paths of the file are those of its folder."""
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "a.img").write_bytes(bytes(4096))
    qemu = command(kept, body="")[-1]
    (kept / "vm.toml").write_text(f'qemu = ["{qemu}", "-S"]\ndisk = "a.img"')
    done = run(tmp_path, "--rng", "--file", "kept/vm.toml", *added)
    assert (done.returncode, done.stderr) == (0, "")
    assert "vhostctl-disk0" in done.stdout
    assert "vhostctl-rng0" in done.stdout
    assert done.stdout.rstrip().endswith(('"-S", "-m", "1G"]}', '"-S"]}'))


def test_a_file_s_qemu_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "vm.toml").write_text('qemu = ["qemu-system-nothing"]\nrng = true')
    with launched(tmp_path, "--file", "vm.toml", body="") as started:
        assert started.program.ends() == (0, [])


def test_a_disk_in_a_folder_with_odd_names(tmp_path: Path) -> None:
    folder = tmp_path / "a, b's $HOME"
    folder.mkdir()
    (folder / "c,d.img").write_bytes(bytes(4096))
    with launched(folder, "--disk=c,,d.img", body="", env={"TMPDIR": os.fspath(folder)}) as started:
        assert started.program.ends() == (0, [])
