"""The command lines at the end of each program's help, as a user would paste them."""

import shlex
import subprocess
from pathlib import Path

import pytest

from tests.programs import PROGRAMS, executable, listening

PATIENCE = 60.0  # seconds that QEMU has, which takes one


def pasted(program: str, folder: Path) -> list[list[str]]:
    """The words of each command line, with this folder in place of /tmp."""
    help_text = subprocess.run([executable(program), "--help"], capture_output=True, text=True, check=True)
    example = help_text.stdout.partition("\nexample:\n")[2].replace("/tmp/", f"{folder}/")
    return [shlex.split(block.replace("\\\n", "")) for block in example.split("\n\n")]


def has_device(name: str) -> bool:
    """Whether this machine's QEMU has a device."""
    done = subprocess.run(
        ["qemu-system-x86_64", "-device", "help"], capture_output=True, text=True, check=True
    )
    return f'"{name}"' in done.stdout


@pytest.mark.parametrize("program", PROGRAMS)
def test_qemu_takes_it_and_has_the_device(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for image in ("disk.img", "system.img"):
        (tmp_path / image).write_bytes(bytes(1 << 20))
    (name, *options), qemu = pasted(program, tmp_path)
    if "-device vhost-user-test-device-pci" in " ".join(qemu) and not has_device(
        "vhost-user-test-device-pci"
    ):
        pytest.skip("QEMU has the device from 10.2 on")
    path = next(option.partition("=")[2] for option in options if option.startswith("--socket-path="))
    device = qemu[qemu.index("-device") + 1].partition(",")[0]
    options.remove(f"--socket-path={path}")
    command = ["none" if word == "gtk,gl=on" else word for word in [*qemu, "-S", "-monitor", "stdio"]]
    with listening([executable(name), *options], Path(path), cwd=str(tmp_path)):
        done = subprocess.run(
            [*command, *(["-display", "none"] if "-display" not in command else [])],
            input="info qtree\nquit\n",
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=True,
        )
    assert f'dev: {device}, id "' in done.stdout
    assert "deprecated" not in done.stderr
