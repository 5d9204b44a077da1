"""The commands that are printed do what they show."""

import subprocess
from pathlib import Path

import pytest

from tests.ctl.machine.wishes import HERE, made
from tests.ctl.programs import script as sh
from tests.programs import PATIENCE, environment, executable
from vhostd.ctl.machine.command import Machine
from vhostd.ctl.machine.script import script
from vhostd.ctl.machine.words import words


def test_without_devices() -> None:
    machine = Machine(words(("qemu-system-x86_64", "-append", "a b")), Path.cwd(), [])
    assert list(script(machine, machine.words.start + machine.words.rest, Path("/run/vm"))) == [
        "mkdir -m 0700 /run/vm",
        "qemu-system-x86_64 -append 'a b'",
        "rmdir /run/vm",
    ]


def test_another_folder() -> None:
    machine = Machine(words(("qemu-system-x86_64",)), HERE, made("--disk=a b.img"))
    lines = list(script(machine, ["qemu"], Path("/run/vm")))
    assert lines[1].startswith(f"(cd {HERE} && exec ")
    assert "'--blk-file=a b.img'" in lines[1]
    assert lines[3] == f"(cd {HERE} && exec qemu)"


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_it_works_when_it_is_pasted(tmp_path: Path, shell: str) -> None:
    """The fake QEMU sees that all programs listen; nothing is left."""
    (tmp_path / "a b.img").write_bytes(bytes(4096))
    body = f"for each in {tmp_path}/run/*.sock; do [ -S $each ] && basename $each; done >{tmp_path}/seen"
    qemu = sh(tmp_path / "qemu-system-x86_64", body)
    command = [
        *(executable("vhostctl"), "run", "--disk", "a b.img", "--rng", "--keyboard", "--print"),
        *("--", str(qemu)),
    ]
    printed = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=True, env=environment()
    ).stdout
    folder = printed.splitlines()[0].rpartition(" ")[2]
    done = subprocess.run(
        [shell],
        input=printed.replace(folder, f"{tmp_path}/run"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
        env=environment(),
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "seen").read_text().split() == ["disk0.sock", "keyboard0.sock", "rng0.sock"]
    assert not (tmp_path / "run").exists()
