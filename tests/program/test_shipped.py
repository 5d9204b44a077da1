"""The files that come with the package are found where it is: in its checkout, or installed from a wheel."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.programs import environment
from vhostd import __version__
from vhostd.errors import SetupError
from vhostd.program import shipped as module
from vhostd.program.shipped import DESCRIPTIONS, UNITS, shipped

CHECKOUT = Path(__file__).parents[2]
TYPES = {"block", "console", "gpu", "input", "rng"}


def test_in_a_checkout() -> None:
    assert shipped(*DESCRIPTIONS) == CHECKOUT / "share/vhost-user"
    assert shipped(*UNITS) == CHECKOUT / "contrib/systemd"


@pytest.mark.parametrize(
    "package",
    ["lib/python3/dist-packages", "lib64/python3.13/site-packages", "local/lib/python3.13/dist-packages"],
)
def test_below_any_prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setattr(module, "__file__", str(tmp_path / package / "vhostd/shipped.py"))
    (tmp_path / "share/vhostd/systemd").mkdir(parents=True)
    assert shipped(*UNITS) == tmp_path / "share/vhostd/systemd"


def test_the_nearest_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "__file__", str(tmp_path / "venv/lib/vhostd/shipped.py"))
    for place in ("contrib/systemd", "venv/share/vhostd/systemd"):
        (tmp_path / place).mkdir(parents=True)
    assert shipped(*UNITS) == tmp_path / "venv/share/vhostd/systemd"


def test_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "__file__", "/nonexistent/lib/vhostd/shipped.py")
    with pytest.raises(
        SetupError, match=r"share/vhost-user is missing: nothing above /nonexistent/lib/vhostd"
    ):
        shipped(*DESCRIPTIONS)


@pytest.fixture(scope="module")
def venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the project's wheel; what that needs is taken from the one of the tests."""
    folder = tmp_path_factory.mktemp("wheel")
    env = environment({"CFLAGS": "-O0", "PYTHON": sys.executable})  # it is to be built soon, not to be fast
    subprocess.run([CHECKOUT / "contrib/wheel.sh", folder], check=True, env=env)
    made = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", made], check=True, env=env)
    (built,) = folder.glob(f"vhostd-{__version__}-*.whl")
    pip = [sys.executable, "-m", "pip", "--quiet", "--python", str(made / "bin/python")]
    subprocess.run([*pip, "install", "--no-deps", built], check=True, env=env)
    (site,) = made.glob("lib/python3*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return made


def run(venv: Path, *arguments: str, status: int = 0) -> str:
    done = subprocess.run(
        [venv / "bin/vhostctl", *arguments],
        env=environment(),
        cwd=venv,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stderr
    return done.stdout


def test_a_wheel_has_all_that_is_installed(venv: Path, tmp_path: Path) -> None:
    run(venv, "install", "--prefix=/usr", f"--destdir={tmp_path}")
    descriptions = list((tmp_path / "usr/share/qemu/vhost-user").iterdir())
    assert {path.name for path in descriptions} == {f"50-vhostd-{kind}.json" for kind in TYPES}
    assert all(f'"{venv}/bin/vhost-user-' in path.read_text() for path in descriptions)
    shipped_units = {path.name for path in (CHECKOUT / "contrib/systemd").iterdir()}
    assert set(os.listdir(tmp_path / "usr/lib/systemd/system")) == shipped_units
    assert len(list((tmp_path / "usr/share/man/man1").iterdir())) == len(TYPES) + 1
    run(venv, "uninstall", "--prefix=/usr", f"--destdir={tmp_path}")
    assert not list(tmp_path.iterdir())


def test_a_wheel_s_programs_run(venv: Path) -> None:
    for name in (
        "vhost-user-blk",
        "vhost-user-console",
        "vhost-user-gpu",
        "vhost-user-input",
        "vhost-user-rng",
    ):
        done = subprocess.run(
            [venv / "bin" / name, "--print-capabilities"], stdout=subprocess.PIPE, text=True, check=True
        )
        assert '"type": ' in done.stdout
