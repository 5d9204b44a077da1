"""libvirt's discovery: which files count, in which order, and what stops it."""

import json
from pathlib import Path

import pytest

from vhostd.conformance.schema import SCHEMA
from vhostd.ctl.libvirt.discovery import LAUNCHED, TYPES, File, Folder, State, discover, is_broken
from vhostd.ctl.libvirt.folders import read_folder
from vhostd.ctl.libvirt.json_text import LIMIT
from vhostd.program.shipped import DESCRIPTIONS, shipped

SHARE = Path("/usr/share/qemu/vhost-user")
ETC = Path("/etc/qemu/vhost-user")
HOME = Path("/home/me/.config/qemu/vhost-user")


def described(path: Path, kind: object = "gpu", **members: object) -> File:
    """A file that says what it is."""
    return plain(path, json.dumps({"type": kind, "binary": "/usr/bin/it", **members}).encode())


def plain(path: Path, content: bytes = b"") -> File:
    return File(path, len(content), content)


def states(*folders: Folder) -> list[tuple[str, State]]:
    """The files by their place, and what becomes of them."""
    return [(str(entry.path), entry.state) for entry in discover(folders)]


def reason(file: File) -> str:
    """Why a file alone breaks the discovery."""
    (entry,) = discover([Folder(file.path.parent, (file,))])
    assert entry.state == State.BREAKS
    return entry.reason


# --- Precedence -----------------------------------------------------------------------------------------


def test_precedence_as_libvirt_tests_it(tmp_path: Path) -> None:
    """As its own test data are: links within and between folders, a mask, no folder of a user's."""
    share, etc = tmp_path / "usr/share", tmp_path / "etc"
    for folder in (share, etc):
        folder.mkdir(parents=True)
    (share / "50-gpu.json").write_text('{"type": "gpu", "binary": "/usr/bin/gpu"}')
    (share / "50-qemu-virtiofsd.json").write_text('{"type": "fs", "binary": "/usr/bin/virtiofsd"}')
    (share / "30-gpu.json").symlink_to("50-gpu.json")
    (share / "60-gpu.json").symlink_to("50-gpu.json")
    (etc / "40-gpu.json").symlink_to("../usr/share/50-gpu.json")
    (etc / "50-gpu.json").touch()
    found = discover([read_folder(folder) for folder in (share, etc, tmp_path / "home/qemu")])
    assert [(each.path, each.type, each.binary) for each in found if each.state == State.CANDIDATE] == [
        (share / "30-gpu.json", "gpu", "/usr/bin/gpu"),
        (etc / "40-gpu.json", "gpu", "/usr/bin/gpu"),
        (share / "50-qemu-virtiofsd.json", "fs", "/usr/bin/virtiofsd"),
        (share / "60-gpu.json", "gpu", "/usr/bin/gpu"),
    ]
    assert [(each.path, each.state) for each in found if each.state != State.CANDIDATE] == [
        (share / "50-gpu.json", State.MASKED),
        (etc / "50-gpu.json", State.MASK),
    ]
    assert not is_broken(found)


def test_the_most_specific_counts() -> None:
    folders = [Folder(place, (described(place / "50-a.json"),)) for place in (SHARE, ETC, HOME)]
    assert states(*folders) == [
        (f"{SHARE}/50-a.json", State.REPLACED),
        (f"{ETC}/50-a.json", State.REPLACED),
        (f"{HOME}/50-a.json", State.CANDIDATE),
    ]
    assert [entry.reason for entry in discover(folders)][:2] == [f"by {HOME}/50-a.json"] * 2


def test_a_mask_that_is_less_specific_hides_nothing() -> None:
    folders = (Folder(SHARE, (plain(SHARE / "a"),)), Folder(ETC, (described(ETC / "a"),)))
    assert [state for _, state in states(*folders)] == [State.REPLACED, State.CANDIDATE]


def test_junk_that_does_not_count_is_not_looked_at() -> None:
    junk = Folder(SHARE, (plain(SHARE / "a.json", b"junk"),))
    assert [state for _, state in states(junk, Folder(ETC, (plain(ETC / "a.json"),)))] == [
        State.MASKED,
        State.MASK,
    ]


def test_names_are_sorted_by_their_bytes() -> None:
    names = ["A.json", "90-a.json", "9-a.json", "é.json", "a.json", "10-\udcff.json", "10-a.json"]
    folder = Folder(ETC, tuple(described(ETC / name) for name in names))
    in_order = ["10-a.json", "10-\udcff.json", "9-a.json", "90-a.json", "A.json", "a.json", "é.json"]
    assert [entry.path.name for entry in discover([folder])] == in_order


# --- What a file is -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TYPES)
def test_all_types_that_libvirt_knows(kind: str) -> None:
    (entry,) = discover([Folder(ETC, (described(ETC / "a.json", kind),))])
    assert entry.state == (State.CANDIDATE if kind in LAUNCHED else State.UNUSED)
    assert (entry.type, entry.binary, entry.notes) == (kind, "/usr/bin/it", ())


def test_they_are_those_of_the_conventions() -> None:
    schema = json.loads((shipped(*DESCRIPTIONS) / SCHEMA).read_bytes())
    assert sorted(schema["$defs"]["type"]["enum"]) == sorted(TYPES)


def test_what_breaks_it_says_why() -> None:
    path = ETC / "a.json"
    assert reason(described(path, "sound")) == "its type is 'sound', which libvirt does not know"
    assert reason(described(path, 5)) == "its type is no string"
    assert reason(plain(path, b"{}")) == reason(plain(path, b"[]")) == "it has no type"
    assert reason(plain(path, b"# gpu")) == "it is not JSON: line 1, column 1: expecting value"
    assert reason(File(path, LIMIT + 1, b"{")) == "it is larger than 1 MiB"
    assert reason(File(path, 5, unreadable="Permission denied")) == "it cannot be read: Permission denied"
    assert reason(File(path, unreachable="No such file or directory")).startswith("it leads nowhere: No such")


def test_a_folder_that_cannot_be_read_breaks_it() -> None:
    (entry,) = discover([Folder(ETC, fault="the folder cannot be read: Permission denied")])
    assert (entry.path, entry.state) == (ETC, State.BREAKS)


def test_a_link_to_nothing_breaks_it_even_where_another_counts() -> None:
    dangling = Folder(SHARE, (File(SHARE / "a.json", unreachable="No such file or directory"),))
    assert [state for _, state in states(dangling, Folder(ETC, (described(ETC / "a.json"),)))] == [
        State.BREAKS,
        State.CANDIDATE,
    ]


def test_what_is_ignored_neither_counts_nor_breaks() -> None:
    folders = (
        Folder(SHARE, (described(SHARE / "a"),)),
        Folder(ETC, (File(ETC / "a", ignored="it is a folder"),)),
    )
    assert [state for _, state in states(*folders)] == [State.CANDIDATE, State.IGNORED]


def test_notes_tell_what_others_mind() -> None:
    twice = b'{"type": "gpu", "type": "gpu", "binary": "/usr/bin/it"}'
    (entry,) = discover([Folder(ETC, (plain(ETC / "a.json~", twice),))])
    assert entry.state == State.CANDIDATE
    assert entry.notes == (
        "libvirt reads it whatever its name ends in: remove it if it is a copy",
        'other versions of libvirt do not take it for JSON, and break: an object has "type" twice',
    )
    (entry,) = discover(
        [Folder(ETC, (plain(ETC / "a.json", b'{"type": "gpu", "binary": "gpu", "tags": 5}'),))]
    )
    assert entry.notes == ('at $.binary: "gpu" is no absolute path',)
    described = '{"type": "gpu", "binary": "/usr/bin/it", "description": "écran"}'.encode()
    (entry,) = discover([Folder(ETC, (plain(ETC / "a.json", described),))])
    fault = "line 1, column 58: 'é' (write \\u00e9), which json-c 0.18 refuses"
    assert (entry.state, entry.notes) == (
        State.CANDIDATE,
        (f"libvirt does not read it on other hosts: {fault}",),
    )
