"""What an installation consists of."""

import json
from pathlib import Path

import pytest

from tests.ctl.commands import NAMES, program
from tests.ctl.staging import SHELLS
from vhostd.ctl.description import load
from vhostd.ctl.installation import contents as module
from vhostd.ctl.installation.contents import contents
from vhostd.ctl.installation.places import system_places
from vhostd.program.shipped import DESCRIPTIONS, UNITS, shipped

PLACES = system_places(Path("/usr"))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "vhostctl"])
def test_all_that_is_shipped_for_a_program(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = contents(PLACES, [program(name, tmp_path, monkeypatch)])
    (shipped_description,) = [
        path for path in shipped(*DESCRIPTIONS).glob("*-vhostd-*.json") if load(path).binary.name == name
    ]
    units = {path.name for path in shipped(*UNITS).iterdir() if path.name.partition("@")[0] == name}
    assert len(units) == 2
    assert set(files) == {
        PLACES.descriptions / shipped_description.name,
        *(PLACES.units / unit for unit in units),
        PLACES.manuals / f"{name}.1",
        *(PLACES.share / shell.format(name) for shell in SHELLS),
    }
    document = json.loads(files[PLACES.descriptions / shipped_description.name])
    assert document == json.loads(shipped_description.read_text()) | {"binary": str(tmp_path / name)}


def test_vhostctl_is_no_back_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = contents(PLACES, [program("vhostctl", tmp_path, monkeypatch)])
    assert set(files) == {
        PLACES.manuals / "vhostctl.1",
        *(PLACES.share / shell.format("vhostctl") for shell in SHELLS),
    }
    assert str(PLACES.record).encode() in files[PLACES.manuals / "vhostctl.1"]


def test_pages_name_the_files_that_belong_to_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = contents(PLACES, [program("vhost-user-gpu", tmp_path, monkeypatch)])[
        PLACES.manuals / "vhost-user-gpu.1"
    ]
    text = page.decode().replace("\\-", "-")
    assert "/usr/share/qemu/vhost-user/50-vhostd-gpu.json" in text
    assert "/usr/lib/systemd/system/vhost-user-gpu@.socket" in text


def test_tags_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = {"description": "a", "type": "rng", "binary": "/usr/bin/vhost-user-rng", "tags": ["fast"]}
    (tmp_path / "50-vhostd-rng.json").write_text(json.dumps(document))
    monkeypatch.setattr(module, "DESCRIPTIONS", (str(tmp_path),))
    files = contents(PLACES, [program("vhost-user-rng", tmp_path / "bin", monkeypatch)])
    written = json.loads(files[PLACES.descriptions / "50-vhostd-rng.json"])
    assert written == document | {"binary": str(tmp_path / "bin/vhost-user-rng")}
