"""Where an installation's files go."""

from pathlib import Path

import pytest

from vhostd.ctl.installation.places import Places, system_places, user_places


@pytest.mark.parametrize(
    ("prefix", "descriptions", "units", "are_read"),
    [
        ("/usr", "/usr/share/qemu/vhost-user", "/usr/lib/systemd/system", True),
        ("/usr/local", "/etc/qemu/vhost-user", "/etc/systemd/system", True),
        ("/opt/vhostd", "/opt/vhostd/share/qemu/vhost-user", "/opt/vhostd/lib/systemd/system", False),
    ],
)
def test_below_a_prefix(prefix: str, descriptions: str, units: str, *, are_read: bool) -> None:
    share = Path(prefix, "share")
    assert system_places(Path(prefix)) == Places(Path(descriptions), Path(units), share, are_read=are_read)


@pytest.mark.parametrize("empty", [{}, {"XDG_CONFIG_HOME": "", "XDG_DATA_HOME": "relative"}])
def test_at_home(monkeypatch: pytest.MonkeyPatch, empty: dict[str, str]) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    places = user_places(empty)
    assert places.descriptions == Path("/home/somebody/.config/qemu/vhost-user")
    assert places.units == Path("/home/somebody/.config/systemd/user")
    assert places.share == Path("/home/somebody/.local/share")
    assert places.record == Path("/home/somebody/.local/share/vhostd/installed.json")
    assert places.user
    assert places.are_read


def test_where_the_environment_says() -> None:
    places = user_places({"XDG_CONFIG_HOME": "/c", "XDG_DATA_HOME": "/d"})
    assert (places.descriptions, places.share) == (Path("/c/qemu/vhost-user"), Path("/d"))


def test_what_is_in_it() -> None:
    places = system_places(Path("/usr/local"))
    assert places.holds(Path("/etc/qemu/vhost-user/50-vhostd-gpu.json"))
    assert places.holds(Path("/usr/local/share/man/man1/vhostctl.1"))
    assert not places.holds(Path("/etc/passwd"))
    assert not places.holds(Path("/usr/local/shared"))
    assert not places.holds(Path("/usr/local/share/../../../etc/passwd"))
