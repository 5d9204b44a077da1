"""The systemd units, for other places and for a user's service manager."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ctl.staging import Site
from tests.programs import connect, executable, get_features
from tests.systemd.manager import LET_IN, Manager
from vhostd.ctl.installation.units import unit
from vhostd.errors import SetupError
from vhostd.program.shipped import UNITS, shipped

PROGRAM = Path("/opt/vhostd/bin/vhost-user-rng")
SERVICE = """\
[Service]
EnvironmentFile=-/etc/vhost-user-rng/%i.conf
ExecStart=/usr/bin/vhost-user-rng $OPTIONS
ExecStartPre=/usr/bin/vhost-user-rng-other
# /usr/bin/vhost-user-rng is not all
DynamicUser=yes
ProtectHome=yes
NoNewPrivileges=yes
"""
SERVICES = sorted(path.name for path in shipped(*UNITS).glob("*.service"))


def test_the_program_is_where_it_is() -> None:
    text = unit(SERVICE, PROGRAM, user=False)
    changed = "ExecStart=/opt/vhostd/bin/vhost-user-rng $OPTIONS"
    assert text == SERVICE.replace("ExecStart=/usr/bin/vhost-user-rng $OPTIONS", changed)


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("/100%/vhost-user-rng", "/100%%/vhost-user-rng"),
        ("/a b/vhost-user-rng", '"/a b/vhost-user-rng"'),
        ("/a$HOME/vhost-user-rng", "/a$HOME/vhost-user-rng"),
    ],
)
def test_what_systemd_would_take_otherwise(path: str, word: str) -> None:
    assert f"\nExecStart={word} $OPTIONS\n" in unit(SERVICE, Path(path), user=False)


@pytest.mark.parametrize("character", ['"', "'", "\\"])
def test_what_systemd_starts_nothing_with(character: str) -> None:
    with pytest.raises(SetupError, match="systemd starts no program with a quote or a backslash"):
        unit(SERVICE, Path(f"/a{character}b/vhost-user-rng"), user=False)


def test_a_user_s_manager_is_asked_for_what_it_can_do() -> None:
    text = unit(SERVICE, PROGRAM, user=True)
    assert "DynamicUser" not in text
    assert "ProtectHome" not in text
    assert "\nNoNewPrivileges=yes\n" in text
    assert "\nEnvironmentFile=-%E/vhost-user-rng/%i.conf\n" in text


@pytest.mark.parametrize("user", [False, True], ids=["system", "user"])
def test_systemd_understands_them(tmp_path: Path, *, user: bool) -> None:
    folder = tmp_path / "a %folder $HOME"
    folder.mkdir()
    for path in shipped(*UNITS).iterdir():
        program = folder / path.name.partition("@")[0]
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
        (tmp_path / path.name).write_text(unit(path.read_text(), program, user=user))
    manager = ["--user"] if user else []
    for service in SERVICES:
        done = subprocess.run(
            ["systemd-analyze", *manager, "--man=no", "verify", tmp_path / service],
            capture_output=True,
            text=True,
            check=False,
            env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)},
        )
        # Of the machine's own units it may have something to say as well.
        complaints = [line for line in done.stderr.splitlines() if "vhost-user" in line]
        assert (done.returncode, complaints) == (0, []), service


@pytest.mark.parametrize("path", sorted(shipped(*UNITS).iterdir()), ids=lambda path: path.name)
def test_a_user_s_units_name_no_places_of_the_system_s(path: Path) -> None:
    text = unit(path.read_text(), Path("/home/user/bin/vhost-user-rng"), user=True)
    for place in ("/etc", "/run", "/var", "kvm", "this group", "systemctl edit", "systemctl enable"):
        assert place not in text


@pytest.mark.parametrize("account", ["User=nobody", "User=root"])
def test_a_user_s_manager_runs_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], account: str
) -> None:
    with Manager(tmp_path) as manager:
        shutil.rmtree(tmp_path / "config/systemd/user")  # the system's
        site = Site(tmp_path, monkeypatch, capfd)
        site.called_from(Path(sys.executable).parent)
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
        assert site.run("install", "--user", "--types", "rng")[0] == 0
        options = tmp_path / "config/vhost-user-rng/a.conf"
        options.parent.mkdir()
        options.write_text('OPTIONS="--max-bytes=4096"\n')
        # The test's manager is root's: programs run as in an ordinary user's, or as in root's own.
        manager.drop_in("vhost-user-rng@.service", account, *LET_IN)
        manager.run("start", "vhost-user-rng@a.socket")
        with connect(manager.socket_path("vhost-user-rng")) as sock:
            assert get_features(sock)
            pid = manager.show("vhost-user-rng@a.service", "MainPID")
            words = Path("/proc", pid, "cmdline").read_text().split("\0")
            assert words[-3:] == [executable("vhost-user-rng"), "--max-bytes=4096", ""]
