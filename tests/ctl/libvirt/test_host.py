"""What the host has."""

from pathlib import Path

import pytest

from vhostd.ctl.libvirt import host


def test_a_render_node_is_a_device_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "DRM", tmp_path / "dri")
    assert not host.has_render_node()
    (tmp_path / "dri").mkdir()
    (tmp_path / "dri/card0").touch()
    assert not host.has_render_node()
    (tmp_path / "dri/renderD128").touch()
    assert host.has_render_node()
