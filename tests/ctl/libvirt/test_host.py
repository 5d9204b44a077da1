"""What the host has."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.programs import PATIENCE, environment, executable
from vhostd.ctl.libvirt import host
from vhostd.ctl.libvirt.json_text import JSON_C, TOLERANT, YAJL

X86_64, AARCH64 = 62, 183
DEBIAN, FEDORA = "usr/lib/x86_64-linux-gnu", "usr/lib64"


def put_libvirt(
    root: Path, needs: str, version: str = "", folder: str = DEBIAN, machine: int = X86_64
) -> None:
    """A libvirt that needs a library, and that of this version, if there is one."""
    (root / folder).mkdir(parents=True)
    head = b"\x7fELF".ljust(18, b"\0") + machine.to_bytes(2, "little")
    (root / folder / "libvirt.so.0.11003.0").write_bytes(head + b"\0libc.so.6\0" + needs.encode() + b"\0")
    (root / folder / "libvirt.so.0").symlink_to("libvirt.so.0.11003.0")
    if version:
        (root / folder / f"{needs}.{version}").touch()
        (root / folder / needs).symlink_to(f"{needs}.{version}")


@pytest.mark.parametrize("folder", [DEBIAN, FEDORA])
@pytest.mark.parametrize("version", JSON_C)
def test_libvirt_s_json_c_is_found(tmp_path: Path, version: int, folder: str) -> None:
    put_libvirt(tmp_path, "libjson-c.so.5", f"{version}.0", folder)
    assert host.json_dialect(tmp_path) == JSON_C[version]


def test_links_lead_to_where_they_do_below_the_root(tmp_path: Path) -> None:
    put_libvirt(tmp_path, "libjson-c.so.5")
    (tmp_path / "opt").mkdir()
    (tmp_path / "opt/libjson-c.so.5.3.0").touch()
    (tmp_path / DEBIAN / "libjson-c.so.5").symlink_to("/opt/libjson-c.so.5.3.0")
    assert host.json_dialect(tmp_path) == JSON_C[3]


def test_a_newer_json_c_is_as_the_last_that_is_known(tmp_path: Path) -> None:
    put_libvirt(tmp_path, "libjson-c.so.5", "17.0")
    assert host.json_dialect(tmp_path) == JSON_C[max(JSON_C)]


def test_a_char_without_a_sign_makes_no_difference_to_json_c(tmp_path: Path) -> None:
    put_libvirt(tmp_path, "libjson-c.so.5", "4.0", "usr/lib/aarch64-linux-gnu", AARCH64)
    dialect = host.json_dialect(tmp_path)
    assert (dialect.name, dialect.beyond_ascii) == ("json-c 0.18", False)


def test_libvirt_s_yajl_is_found(tmp_path: Path) -> None:
    put_libvirt(tmp_path, "libyajl.so.2", "1.0")
    assert host.json_dialect(tmp_path) == YAJL


def test_without_libvirt_nothing_is_known(tmp_path: Path) -> None:
    assert host.json_dialect(tmp_path) == TOLERANT
    put_libvirt(tmp_path, "libjson-c.so.5")
    assert host.json_dialect(tmp_path) == TOLERANT


def test_a_loop_of_links_is_no_library(tmp_path: Path) -> None:
    put_libvirt(tmp_path, "libjson-c.so.5")
    (tmp_path / DEBIAN / "libjson-c.so.5").symlink_to("libjson-c.so.5")
    assert host.json_dialect(tmp_path) == TOLERANT
    (tmp_path / FEDORA).mkdir()
    (tmp_path / FEDORA / "libjson-c.so.5").symlink_to("libjson-c.so.5.3.0")
    assert host.json_dialect(tmp_path) == JSON_C[3]


def test_a_fifo_is_no_library(tmp_path: Path) -> None:
    (tmp_path / FEDORA).mkdir(parents=True)
    os.mkfifo(tmp_path / FEDORA / "libvirt.so.0")
    # In a process of its own, which can be stopped if it waits.
    command = [executable("vhostctl"), "list", f"--root={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, "")


def test_of_a_very_large_file_only_the_begin_is_read(tmp_path: Path) -> None:
    put_libvirt(tmp_path, "libyajl.so.2")
    with (tmp_path / DEBIAN / "libvirt.so.0").open("r+b") as file:
        file.truncate(1 << 40)
    assert host.json_dialect(tmp_path) == YAJL


def test_a_render_node_is_a_device_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "DRM", tmp_path / "dri")
    assert not host.has_render_node()
    (tmp_path / "dri").mkdir()
    (tmp_path / "dri/card0").touch()
    assert not host.has_render_node()
    (tmp_path / "dri/renderD128").touch()
    assert host.has_render_node()
