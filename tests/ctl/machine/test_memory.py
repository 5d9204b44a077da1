"""The guest's memory is shared, whatever the user says of it, or the user is told."""

import pytest

from vhostd.ctl.machine.memory import memory_arguments, memory_size
from vhostd.ctl.machine.words import Words
from vhostd.errors import UsageError

MIB = 1 << 20


def line(*rest: str) -> Words:
    return Words(("qemu-system-x86_64",), rest)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2G", 2048 * MIB),
        ("512", 512 * MIB),
        ("1.5G", 1536 * MIB),
        ("1g", 1024 * MIB),
        ("size=256M,slots=2,maxmem=4G", 256 * MIB),
        ("512M,slots=2,maxmem=4G", 512 * MIB),
        ("1000000B", 1007616),  # a multiple of 8192
    ],
)
def test_the_size_is_that_of_m(text: str, size: int) -> None:
    assert memory_size(line("-m", text)) == size


def test_the_last_m_counts() -> None:
    assert memory_size(line("-m", "1G", "-m", "2G", "-m", "slots=2,maxmem=4G")) == 2048 * MIB


def test_without_m_it_is_qemu_s_default() -> None:
    assert memory_size(line()) == 128 * MIB


def test_shared_memory_is_added() -> None:
    assert memory_arguments(line("-m", "2G")) == [
        *("-object", "memory-backend-memfd,id=vhostctl-memory,size=2048M,share=on"),
        *("-machine", "memory-backend=vhostctl-memory"),
    ]


@pytest.mark.parametrize(
    "rest",
    [
        ("-object", "memory-backend-memfd,id=m,size=1G", "-machine", "q35,memory-backend=m"),
        ("-object", "memory-backend-file,id=m,share=on,size=1G,mem-path=/dev/shm", "-M", "memory-backend=m"),
        ("-object", '{"qom-type":"memory-backend-ram","id":"m","share":true}', "-M", "memory-backend=m"),
        ("-object", "memory-backend-memfd,id=m,size=1G", "-numa", "node,memdev=m"),
    ],
)
def test_shared_memory_of_the_user_s_own_is_used(rest: tuple[str, ...]) -> None:
    assert memory_arguments(line(*rest)) == []


def test_memory_to_plug_in_is_beside_ours() -> None:
    dimm = ("-object", "memory-backend-memfd,id=d,size=1G", "-device", "pc-dimm,memdev=d")
    assert "memory-backend=vhostctl-memory" in memory_arguments(line(*dimm))


@pytest.mark.parametrize(
    ("rest", "complaint"),
    [
        (("-m", "much"), "-m much: not a size"),
        (("-m", "0"), "-m 0: a guest needs memory"),
        (("-m", "-1G"), "-m -1G: not a size"),
        (("-mem-path", "/dev/hugepages"), "-mem-path does not go with shared memory"),
        (("-M", "q35,memory.size=1G"), "say with -m"),
        (("-object", "memory-backend-ram,id=m,size=1G", "-M", "memory-backend=m"), "id=m: .* add share=on"),
        (("-object", "memory-backend-file,id=d,size=1G", "-device", "pc-dimm,memdev=d"), "add share=on"),
        (("-object", "memory-backend-memfd,id=m,share=off"), "add share=on"),
        (("-numa", "node,mem=1G"), "by memdev=ID"),
        (("-numa", "node"), "by memdev=ID"),
    ],
)
def test_what_is_not_shared_is_said(rest: tuple[str, ...], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        memory_arguments(line(*rest))
