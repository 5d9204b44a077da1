"""What a program says of itself, and that its device is the one that it speaks of."""

import importlib
import json
import tomllib
from pathlib import Path

import pytest

from vhostd import Device, DeviceType, Manifest, run
from vhostd.program.main import load

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROGRAMS: dict[str, str] = PYPROJECT["project"]["entry-points"]["vhostd.programs"]
PACKAGES = sorted(place.partition(":")[0] for place in PROGRAMS.values())


class Lamp(Device):
    kind = DeviceType.NINEP


@pytest.mark.parametrize(
    ("manifest", "printed"),
    [
        (Manifest("9p", Lamp), {"type": "9p", "features": []}),
        (Manifest("input", "a.b:C", ("x-y", "z")), {"type": "input", "features": ["x-y", "z"]}),
    ],
)
def test_it_is_one_line_of_json(manifest: Manifest, printed: dict[str, object]) -> None:
    assert json.loads(str(manifest)) == printed
    assert len(str(manifest).splitlines()) == 1


@pytest.mark.parametrize("package", PACKAGES)
def test_a_program_s_device_is_what_its_manifest_says(package: str) -> None:
    manifest = importlib.import_module(package).MANIFEST
    kind = load(manifest.device)
    assert kind.kind.description_type == manifest.type
    assert kind.__module__ == f"{package}.device"


def test_every_program_has_its_script() -> None:
    scripts = {path.name: path for path in (ROOT / "devices/programs").iterdir()}
    assert PYPROJECT["tool"]["setuptools"]["script-files"] == [
        f"devices/programs/{name}" for name in PROGRAMS
    ]
    assert scripts.keys() == PROGRAMS.keys()
    for name, path in scripts.items():
        package = PROGRAMS[name].removesuffix(":MANIFEST")
        assert path.read_text() == f"#!python\nimport sys\n\nfrom {package} import main\n\nsys.exit(main())\n"
        assert path.stat().st_mode & 0o111


def test_a_device_is_named_or_there() -> None:
    assert load(Lamp) is Lamp
    assert load("vhost_user_rng.device:Rng").kind == DeviceType.RNG


@pytest.mark.parametrize("other", [str, "builtins:print"])
def test_what_is_no_device(other: str | type[object]) -> None:
    with pytest.raises(TypeError, match="no class derived from Device"):
        load(other)


def test_a_device_of_a_type_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Torch(Device):
        kind = DeviceType.other("torch", 63)

    monkeypatch.setattr("sys.argv", ["vhost-user-torch", "--print-capabilities"])
    assert run(Torch) == 0
    assert json.loads(capfd.readouterr().out) == {"type": "torch", "features": []}


def test_a_device_whose_type_is_a_number(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Torch(Device):
        kind = 63  # type: ignore[assignment]

    monkeypatch.setattr("sys.argv", ["vhost-user-torch", "--print-capabilities"])
    assert run(Torch) == 0
    assert json.loads(capfd.readouterr().out) == {"type": "63", "features": []}


def test_capabilities_stand_in_the_manifest_only() -> None:
    with pytest.raises(TypeError, match=r"Torch\.capabilities: they belong into the program's Manifest"):

        class Torch(Device):
            capabilities = ("read-only",)


def test_a_device_without_a_manifest(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["vhost-user-lamp", "--print-capabilities"])
    assert run(Lamp) == 0
    assert json.loads(capfd.readouterr().out) == {"type": "9p", "features": []}
