"""The EEPROM as a guest's driver sees it."""

import asyncio
import shutil
import struct
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

import pytest

from vhostd.errors import GuestError
from vhostd.frontend import Backend, Queue, SharedMemory

PROGRAM = shutil.which("vhost-user-i2c-eeprom", path=Path(sys.executable).parent) or "vhost-user-i2c-eeprom"
FAIL_NEXT, READ = 1, 2
OK, ERROR = b"\0", b"\1"
CONTENTS = bytes(range(256))


def driven(drive: Callable[[Queue], Awaitable[None]], *options: str, state: bytes = b"") -> bytes:
    """Runs the program, with a state if there is one, and a driver of its only queue; returns the state."""

    async def main() -> bytes:
        async with Backend([PROGRAM, "--fd={fd}", *options], patience=30) as program:
            with closing(await program.connect()) as frontend, closing(SharedMemory(1 << 20)) as memory:
                await frontend.negotiate()
                assert frontend.features & 1, "drivers need zero-length requests"
                if state:
                    await frontend.load(state)
                await frontend.share(memory)
                with closing(await frontend.start(memory)) as queue:
                    await drive(queue)
                    await frontend.stop(queue)
                left = await frontend.save()
            assert await program.ended() == 0
        return left

    return asyncio.run(main())


def head(flags: int = 0, address: int = 0x50) -> bytes:
    return struct.pack("<HHI", address << 1, 0, flags)


async def write(queue: Queue, data: bytes, flags: int = 0, address: int = 0x50) -> bytes:
    return await queue.request(head(flags, address) + data, room=1)


async def read(queue: Queue, count: int) -> bytes:
    return await queue.request(head(READ), room=count + 1)


@pytest.fixture
def contents(tmp_path: Path) -> str:
    file = tmp_path / "contents"
    file.write_bytes(CONTENTS)
    return f"--contents={file}"


def test_bytes_are_read_from_a_place(contents: str) -> None:
    async def drive(queue: Queue) -> None:
        assert await write(queue, b"\x10", FAIL_NEXT) == OK
        assert await read(queue, 3) == b"\x10\x11\x12" + OK
        assert await read(queue, 1) == b"\x13" + OK
        assert await write(queue, b"\xff") == OK
        assert await read(queue, 2) == b"\xff\x00" + OK

    driven(drive, contents)


def test_a_write_stays_in_its_page() -> None:
    async def drive(queue: Queue) -> None:
        assert await write(queue, b"\x06abcd") == OK
        assert await write(queue, b"\x00") == OK
        assert await read(queue, 9) == b"cd" + b"\xff" * 4 + b"ab" + b"\xff" + OK

    driven(drive)


def test_it_goes_on_in_another_program() -> None:
    async def here(queue: Queue) -> None:
        assert await write(queue, b"\x10abc") == OK

    async def there(queue: Queue) -> None:
        assert await read(queue, 1) == b"\xff" + OK
        assert await write(queue, b"\x10") == OK
        assert await read(queue, 3) == b"abc" + OK

    driven(there, state=driven(here))


def test_only_its_own_address_answers() -> None:
    async def drive(queue: Queue) -> None:
        found = [address for address in range(0x80) if await write(queue, b"", address=address) == OK]
        assert found == [0x53]

    driven(drive, "--address=0x53")


def test_a_group_fails_as_a_whole(contents: str) -> None:
    async def drive(queue: Queue) -> None:
        assert await write(queue, b"\x10", FAIL_NEXT, address=0x51) == ERROR
        assert await queue.request(head(READ | FAIL_NEXT), room=3) == b"\0\0" + ERROR
        assert await read(queue, 1) == b"\0" + ERROR
        assert await read(queue, 1) == b"\x00" + OK

    driven(drive, contents)


@pytest.mark.parametrize(
    ("data", "room"), [(b"", 1), (head(READ), 0), (head(READ), 1 << 16), (head()[:7], 1)]
)
def test_nonsense_breaks_the_ring(data: bytes, room: int) -> None:
    async def drive(queue: Queue) -> None:
        with pytest.raises(GuestError):
            await queue.request(data, room)

    driven(drive)


@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        ("--address=0x60", "'0x60' is not an address from 0x50 to 0x57"),
        ("--contents=/none", "--contents=/none: No such file or directory"),
        ("--contents=/dev/zero", "--contents=/dev/zero: more than 256 bytes"),
    ],
)
def test_what_makes_no_sense_is_told_of(option: str, complaint: str) -> None:
    done = subprocess.run([PROGRAM, "--socket-path=/none/x", option], capture_output=True, text=True)
    assert done.returncode
    assert done.stderr.startswith("vhost-user-i2c-eeprom: error: ")
    assert complaint in done.stderr
