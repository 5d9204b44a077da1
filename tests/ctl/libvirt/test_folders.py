"""The folders that libvirt reads."""

import os
import stat
from pathlib import Path

from vhostd.ctl.libvirt.discovery import File, Folder
from vhostd.ctl.libvirt.folders import SYSTEM, libvirt_folders, read_folder
from vhostd.ctl.libvirt.json_text import LIMIT


def test_root_s_home_is_never_read() -> None:
    variables = {"HOME": "/root", "XDG_CONFIG_HOME": "/root/.config"}
    assert libvirt_folders(privileged=True, environment=variables) == [*SYSTEM]


def test_a_user_s_folder_is_the_most_specific() -> None:
    config = libvirt_folders(privileged=False, environment={"XDG_CONFIG_HOME": "/home/me/cfg"})
    assert config == [*SYSTEM, Path("/home/me/cfg/qemu/vhost-user")]
    home = Path.home() / ".config/qemu/vhost-user"
    for variables in ({}, {"XDG_CONFIG_HOME": ""}):
        assert libvirt_folders(privileged=False, environment=variables) == [*SYSTEM, home]


def test_files_and_what_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "empty").touch()
    (tmp_path / ".hidden").write_bytes(b"content")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "linked folder").symlink_to("folder")
    (tmp_path / "device").symlink_to("/dev/null")
    (tmp_path / "nothing").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "fifo")
    os.mknod(tmp_path / "socket", stat.S_IFSOCK | 0o644)
    found = {file.path.name: file for file in read_folder(tmp_path).files}
    assert {name: file.ignored for name, file in found.items() if file.ignored} == {
        ".hidden": "it is hidden",
        "folder": "it is a folder",
        "linked folder": "it is a folder",
        "device": "it is a device",
        "fifo": "it is a fifo",
        "socket": "it is a socket",
    }
    assert {name: file.unreachable for name, file in found.items() if file.unreachable} == {
        "nothing": "No such file or directory",
        "loop": "Too many levels of symbolic links",
    }
    assert found["file"] == File(tmp_path / "file", 7, b"content")
    assert found["link"] == File(tmp_path / "link", 7, b"content")
    assert found["empty"] == File(tmp_path / "empty")


def test_no_more_is_read_than_libvirt_takes(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 40)
    (file_found,) = read_folder(tmp_path).files
    assert (file_found.size, len(file_found.content)) == (1 << 40, LIMIT)


def test_what_fails_when_it_is_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "memory").symlink_to("/proc/self/mem")  # which has no byte 0
    (file,) = read_folder(tmp_path).files
    assert file.unreadable == "Input/output error"


def test_a_folder_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert read_folder(tmp_path / "nowhere") == Folder(tmp_path / "nowhere")


def test_a_folder_that_is_a_file_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert read_folder(tmp_path / "file").fault == "the folder cannot be read: Not a directory"


def test_another_root(tmp_path: Path) -> None:
    share, etc = (tmp_path / str(folder).lstrip("/") for folder in SYSTEM)
    share.mkdir(parents=True)
    (share / "50-a.json").write_bytes(b"shared")
    etc.parent.mkdir(parents=True)
    etc.symlink_to(SYSTEM[0])
    for folder in SYSTEM:
        assert read_folder(folder, tmp_path).files == (File(folder / "50-a.json", 6, b"shared"),)
