"""Images of other formats are not served as raw bytes, unless that is said; nor is what has no sector."""

import os
import random
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.blk.newer_qemu import qemu_img
from tests.loop_device import loop_device
from tests.programs import Program, executable
from tests.storage.images import (
    noise,
    skipped_without,
)
from vhostd import SetupError
from vhostd.frontend.drivers.block import SECTOR
from vhostd.storage.formats import BEGINNING, MAGICS, recognize
from vhostd.storage.image import Image

SIZE = 2 * BEGINNING
BEGINNINGS = {
    "qcow": b"QFI\xfb\0\0\0\1",
    "qcow2 of version 2": b"QFI\xfb\0\0\0\2",
    "qcow2 of version 3": b"QFI\xfb\0\0\0\3",
    "qcow2 of a version to come": b"QFI\xfb\0\0\1\1",
    "QED": b"QED\0",
    "VMDK, sparse": b"KDMV\1\0\0\0",
    "VMDK of ESX": b"COWD\1\0\0\0",
    "VMDK, a description": b"# Disk DescriptorFile\nversion=1\n",
    "VHDX": b"vhdxfileQ\0E\0M\0U\0",
    "VDI of QEMU": b"<<< QEMU VM Virtual Disk Image >>>\n".ljust(64, b"\0") + b"\x7f\x10\xda\xbe\1\0\1\0",
    "VDI of VirtualBox": b"<<< Oracle VM VirtualBox Disk Image >>>\n".ljust(64, b"\0") + b"\x7f\x10\xda\xbe",
    "VPC (VHD), dynamic": b"conectix\0\0\0\2\0\1\0\0",
    "Parallels": b"WithoutFreeSpace\2\0\0\0",
    "Parallels, extended": b"WithouFreSpacExt\2\0\0\0",
}
# What may well be a guest's own.
RAW = {
    "zeros": bytes(SECTOR),
    "noise": noise(SECTOR),
    "a boot sector": bytes(510) + b"\x55\xaa",
    "LUKS": b"LUKS\xba\xbe\0\2",
    "Squashfs": b"hsqs",
    "a file system behind others": bytes(SECTOR) + b"QFI\xfb\0\0\0\3",
    "almost qcow2": b"QFI\xfa\0\0\0\3",
    "almost QED": b"QED ",
    "almost VDI": bytes(63) + b"\x7f\x10\xda\xbe",
    "another text": b"# Disk of mine\n",
}


def of(beginning: bytes) -> bytes:
    """A whole image that begins so."""
    return beginning.ljust(SIZE, b"\0")


def serves(path: Path | str, *, direct: bool = False, read_only: bool = False, raw: bool = False) -> None:
    with skipped_without("--cache=direct"):
        Image.open(str(path), read_only=read_only, direct=direct, raw=raw).close()


def refusal(path: Path | str, *, direct: bool = False, read_only: bool = False, raw: bool = False) -> str:
    """Why it is not served, on one line; and nothing stays open."""
    before = os.listdir("/proc/self/fd")
    with pytest.raises(SetupError) as raised, skipped_without("no --cache=direct"):
        Image.open(str(path), read_only=read_only, direct=direct, raw=raw)
    start, _, reason = str(raised.value).partition(f"{path}: ")
    assert start == ""
    assert "\n" not in reason
    assert os.listdir("/proc/self/fd") == before
    return reason


def sentence(name: str) -> str:
    return (
        f"looks like an image in {name} format, which would be served as raw bytes: qemu-nbd and "
        "qemu-storage-daemon serve such images; --format=raw if it is the guest's own data"
    )


# --- What an image looks like ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BEGINNINGS)
@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("read_only", [False, True])
def test_other_formats(
    tmp_path: Path,
    kind: str,
    direct: bool,  # noqa: FBT001
    read_only: bool,  # noqa: FBT001
) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(of(BEGINNINGS[kind]))
    name = kind.partition(" of ")[0].partition(",")[0]
    assert refusal(path, direct=direct, read_only=read_only) == sentence(name)
    serves(path, direct=direct, read_only=read_only, raw=True)
    assert path.read_bytes() == of(BEGINNINGS[kind])


@pytest.mark.parametrize("kind", RAW)
def test_raw_images(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(of(RAW[kind]))
    serves(path)
    serves(path, direct=True)


@pytest.mark.parametrize("beginning", [b"", *(magic[:-1] for _, magic, name in MAGICS if name != "qcow")])
def test_too_short_to_be_one(beginning: bytes) -> None:
    assert recognize(beginning) is None


def test_noise_is_raw() -> None:
    assert not any(recognize(random.Random(seed).randbytes(SECTOR)) for seed in range(1000))


@pytest.mark.parametrize("size", [SECTOR, SECTOR + 1, BEGINNING - 1, BEGINNING, BEGINNING + 1])
def test_images_of_every_size(tmp_path: Path, size: int) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(BEGINNINGS["QED"].ljust(size, b"\0"))
    assert refusal(path) == sentence("QED")
    assert refusal(path, direct=True) == sentence("QED")
    path.write_bytes(bytes(size))
    serves(path)


# qemu-img's formats, all that it can make; the first of a name is what -f takes, then options.
MADE = {
    ("qcow",): "qcow",
    ("qcow2",): "qcow2",
    ("qcow2", "compat=0.10"): "qcow2",
    ("qcow2", "extended_l2=on"): "qcow2",
    ("qed",): "QED",
    ("vmdk",): "VMDK",
    ("vmdk", "subformat=streamOptimized"): "VMDK",
    ("vmdk", "subformat=monolithicFlat"): "VMDK",
    ("vmdk", "subformat=twoGbMaxExtentSparse"): "VMDK",
    ("vdi",): "VDI",
    ("vhdx",): "VHDX",
    ("vpc",): "VPC (VHD)",
    ("parallels",): "Parallels",
    ("raw",): None,
    ("vpc", "subformat=fixed"): None,  # its one sector that is not the disk's is the last
    ("luks", "key-secret=key"): None,
}


@pytest.mark.parametrize("how", MADE, ids="-".join)
def test_images_of_qemu_img(tmp_path: Path, how: Sequence[str]) -> None:
    path = tmp_path / "disk"
    kind, *options = how
    secret = ["--object", "secret,id=key,data=x"] if kind == "luks" else []
    more = ["-o", ",".join(options)] if options else []
    done = subprocess.run(
        qemu_img("create", *secret, "-q", "-f", kind, *more, str(path), "64M"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    name = MADE[(kind, *options)]
    if name is None:
        serves(path)
    else:
        assert refusal(path) == sentence(name)


EMPTY = "it is empty; truncate -s 10G makes a disk of 10 GiB of it"


# --- What is no disk ------------------------------------------------------------------------------------


@pytest.mark.parametrize("raw", [False, True])
def test_nothing_at_all(tmp_path: Path, raw: bool) -> None:  # noqa: FBT001
    path = tmp_path / "disk.img"
    path.touch()
    assert refusal(path, raw=raw) == EMPTY
    assert refusal(path, raw=raw, read_only=True) == EMPTY


def test_a_beginning_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a disk that is broken there; who knows what it is may still serve the rest."""

    def broken(*_: object) -> int:
        raise OSError(5, os.strerror(5))

    path = tmp_path / "disk.img"
    path.write_bytes(bytes(SECTOR))
    monkeypatch.setattr(os, "preadv", broken)
    assert refusal(path) == "cannot be read: Input/output error: --format=raw does not look at it"
    serves(path, raw=True)


# --- Block devices, and the program ---------------------------------------------------------------------


@pytest.mark.parametrize("direct", [False, True])
def test_block_devices(tmp_path: Path, direct: bool) -> None:  # noqa: FBT001
    file = tmp_path / "backing"
    file.write_bytes(of(BEGINNINGS["qcow2 of version 3"]))
    with loop_device(file) as device:
        assert refusal(device, direct=direct) == sentence("qcow2")
        serves(device, direct=direct, raw=True)
        with open(device, "r+b") as disk:
            disk.write(bytes(SECTOR))
        serves(device, direct=direct)


def test_a_block_device_of_no_size(tmp_path: Path) -> None:
    file = tmp_path / "backing"
    file.write_bytes(b"")
    with loop_device(file) as device:
        assert refusal(device) == EMPTY


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (of(BEGINNINGS["qcow2 of version 3"]), sentence("qcow2")),
        (b"", EMPTY),
    ],
)
def test_the_program_says_so_in_one_line(tmp_path: Path, content: bytes, reason: str) -> None:
    image, path = tmp_path / "disk.img", tmp_path / "sock"
    image.write_bytes(content)
    option = f"--blk-file={image}"
    with Program([executable("vhost-user-blk"), option, f"--socket-path={path}"]) as program:
        assert program.ends() == (1, [f"vhost-user-blk: error: {option}: {reason}"])
    assert not path.exists()
    assert image.read_bytes() == content
