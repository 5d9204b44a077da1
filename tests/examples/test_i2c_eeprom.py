"""The example of a device outside the tree, installed and tried as its author would."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.programs import environment, listening

EXAMPLE = Path(__file__).parents[2] / "examples/i2c_eeprom"
NAME = "vhost-user-i2c-eeprom"
PATIENCE = 120.0  # seconds for what takes five


@pytest.fixture(scope="module")
def bin_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the example, and with vhostd from here.

    Nothing is downloaded: the environment sees the packages of the one that runs the tests.
    """
    folder = tmp_path_factory.mktemp("example")
    source = shutil.copytree(EXAMPLE, folder / "source")
    venv.create(folder / "venv", symlinks=True)
    paths = {"base": str(folder / "venv"), "platbase": str(folder / "venv")}
    packages = Path(sysconfig.get_path("purelib", "venv", paths))
    (packages / "outer.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    python = folder / "venv/bin/python"
    options = ("--no-index", "--no-build-isolation", "--no-deps")
    done(python, "-m", "pip", "install", *options, source)
    return folder / "venv/bin"


def done(*command: str | Path, **how: str) -> str:
    """What a command says; it must end well."""
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE, env=environment(), input=how.get("input")
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_its_own_test_passes(bin_folder: Path) -> None:
    test = bin_folder.parents[1] / "source/test_eeprom.py"
    said = done(bin_folder / "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", test)
    assert " passed" in said


def test_it_says_what_it_is(bin_folder: Path) -> None:
    capabilities = done(bin_folder / NAME, "--print-capabilities")
    assert json.loads(capabilities) == {"type": "i2c-adapter", "features": []}


def test_vhostctl_says_that_no_description_can_have_its_type(bin_folder: Path) -> None:
    vhostctl = Path(sys.executable).with_name("vhostctl")
    capabilities = done(bin_folder / NAME, "--print-capabilities")
    checked = subprocess.run([vhostctl, "validate", "-"], input=capabilities, capture_output=True, text=True)
    assert (checked.returncode, len(checked.stdout.splitlines())) == (1, 1)
    assert "$.type" in checked.stdout
    assert "i2c-adapter" in checked.stdout


def test_its_help_has_its_options_and_ends_with_its_example(bin_folder: Path) -> None:
    text = done(bin_folder / NAME, "--help")
    assert "A vhost-user back-end: an I2C bus with an EEPROM" in text
    assert "--contents FILE" in text
    assert "-device vhost-user-i2c-pci,chardev=i2c" in text.partition("example:")[2]


def test_qemu_takes_it_as_its_i2c_bus(bin_folder: Path, tmp_path: Path) -> None:
    """As far as one gets without a driver: QEMU insists on the feature, and names the device."""
    path = tmp_path / "i2c.sock"
    with listening([str(bin_folder / NAME)], path):
        said = done(
            *("qemu-system-x86_64", "-nodefaults", "-display", "none", "-S", "-monitor", "stdio"),
            *(
                "-object",
                "memory-backend-memfd,id=mem,size=64M,share=on",
                "-machine",
                "q35,memory-backend=mem",
            ),
            *("-chardev", f"socket,id=i2c,path={path}", "-device", "vhost-user-i2c-pci,chardev=i2c"),
            input="info qtree\nquit\n",
        )
    assert 'dev: vhost-user-i2c-device, id ""' in said


def test_systemd_finds_nothing_to_complain_of(bin_folder: Path, tmp_path: Path) -> None:
    units = sorted(shutil.copy(unit, tmp_path) for unit in (EXAMPLE / "systemd").iterdir())
    for unit in map(Path, units):
        unit.write_text(unit.read_text().replace("/usr/local/bin/", f"{bin_folder}/"))
    (tmp_path / "others").mkdir()
    for target in ("sysinit", "basic", "sockets", "shutdown"):
        (tmp_path / "others" / f"{target}.target").write_text(f"[Unit]\nDescription={target}\n")
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units],
        env=os.environ | {"SYSTEMD_UNIT_PATH": str(tmp_path / "others")},
        capture_output=True,
        text=True,
    )
    assert (verified.returncode, verified.stdout, verified.stderr) == (0, "", "")
