"""The device: its options, what it offers, growth, polling, limits, and its reset."""

import argparse
import asyncio
import errno
import json
import os
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.conftest import Run
from tests.devices.vhost_user_blk.guest import (
    SIZE,
    Clock,
    Recording,
)
from tests.sessions import backend_requests, negotiated, refused
from tests.storage.images import noise, skipped_without
from vhost_user_blk import MANIFEST
from vhost_user_blk.device import Blk
from vhost_user_blk.protocol import VirtioBlkConfig
from vhostd import DeviceType, SetupError, UsageError, Virtqueue
from vhostd.frontend import Frontend
from vhostd.frontend.drivers.block import (
    FEATURE_DISCARD,
    FEATURE_WRITE_ZEROES,
    FLUSH,
    HEADER,
    IN,
    SECTOR,
    UNSUPP,
    BlockDriver,
    FailedRequest,
)
from vhostd.storage import locking
from vhostd.vhost_user.messages import (
    CONFIG_CHANGE_MSG,
    GET_CONFIG,
    GET_FEATURES,
    GET_QUEUE_NUM,
    RESET_DEVICE,
    SET_CONFIG,
    ConfigSpace,
)
from vhostd.wire.channel import Channel
from vhostd.wire.rows import Empty

ROOT = Path(__file__).parents[3]
WCE = 32
FLUSH_BIT, CONFIG_WCE_BIT = 1 << 9, 1 << 11


def options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(exit_on_error=False)
    Blk.add_options(parser)
    return parser.parse_args(arguments)


def make(*arguments: str) -> Blk:
    return Blk.from_options(options(*arguments))


@pytest.fixture
def path(tmp_path: Path) -> str:
    file = tmp_path / "disk.img"
    file.write_bytes(noise(SIZE))
    return str(file)


@asynccontextmanager
async def driven(
    device: Blk, *, queues: int = 1, features: int | None = None, size: int = 4 << 20
) -> AsyncIterator[tuple[Frontend, BlockDriver]]:
    """A front-end and a driver of the device, which is closed in the end."""
    try:
        async with negotiated(device, features, size) as (frontend, memory):
            driver = await BlockDriver.start(frontend, memory, queues=queues)
            try:
                yield frontend, driver
            finally:
                driver.close()
    finally:
        device.close()


async def config_of(frontend: Frontend) -> VirtioBlkConfig:
    """What a driver reads."""
    return VirtioBlkConfig.unpack((await frontend.call(GET_CONFIG, ConfigSpace(0, bytes(96)))).data)


# --- Options --------------------------------------------------------------------------------------------


def test_what_it_is() -> None:
    assert Blk.kind == DeviceType.BLOCK
    assert DeviceType.BLOCK == 2
    assert json.loads(str(MANIFEST)) == {"type": "block", "features": ["read-only", "blk-file"]}


def test_the_description() -> None:
    description = json.loads((ROOT / "share/vhost-user/50-vhostd-block.json").read_text())
    assert (description["type"], Path(description["binary"]).name) == ("block", "vhost-user-blk")


def test_defaults() -> None:
    assert vars(options("--ram=1M")) == {
        "blk_file": None,
        "ram": 1 << 20,
        "read_only": False,
        "serial": "",
        "logical_block_size": None,
        "physical_block_size": None,
        "format": None,
        "locking": "auto",
        "share_rw": False,
        "cache": "writeback",
        "discard": "on",
        "aio": None,
        "num_queues": 64,
        "queue_size": 128,
        "poll_us": 0,
        "rate_iops": 0,
        "rate_bytes": 0,
    }


@pytest.mark.parametrize(
    ("argument", "name", "value"),
    [
        ("--ram=1G", "ram", 1 << 30),
        ("--read-only", "read_only", True),
        ("--format=raw", "format", "raw"),
        ("--locking=on", "locking", "on"),
        ("--locking=off", "locking", "off"),
        ("--share-rw", "share_rw", True),
        ("--serial=abc", "serial", "abc"),
        ("--logical-block-size=512", "logical_block_size", 512),
        ("--logical-block-size=4K", "logical_block_size", 4096),
        ("--physical-block-size=1048576", "physical_block_size", 1 << 20),
        ("--physical-block-size=1m", "physical_block_size", 1 << 20),
        ("--cache=direct", "cache", "direct"),
        ("--discard=off", "discard", "off"),
        ("--aio=threads", "aio", "threads"),
        ("--num-queues=1", "num_queues", 1),
        ("--num-queues=256", "num_queues", 256),
        ("--queue-size=4", "queue_size", 4),
        ("--queue-size=32768", "queue_size", 32768),
        ("--poll-us=50", "poll_us", 50),
        ("--rate-iops=100", "rate_iops", 100),
        ("--rate-bytes=10M", "rate_bytes", 10 << 20),
    ],
)
def test_option(argument: str, name: str, value: object) -> None:
    image = () if argument.startswith("--ram") else ("--blk-file=x",)
    assert getattr(options(*image, argument), name) == value


@pytest.mark.parametrize(
    "argument",
    [
        *(
            f"--logical-block-size={text}"
            for text in ("", "0", "256", "513", "1000", "2M", "2097152", "-512")
        ),
        *(f"--physical-block-size={text}" for text in ("511", "3072", "x", "1" * 30)),
        *(f"--num-queues={text}" for text in ("", "0", "257", "-1", "1.0", "9" * 30)),
        *(f"--queue-size={text}" for text in ("", "3", "32769", "x")),
        *(f"--poll-us={text}" for text in ("", "-1", "1e3", "9" * 10)),
        *(f"--rate-iops={text}" for text in ("", "0", "-1", "1K")),
        *(f"--rate-bytes={text}" for text in ("", "0", "1X")),
        *(
            "--cache=",
            "--cache=None",
            "--aio=libaio",
            "--locking=yes",
            "--format=qcow2",
            "--format=",
            "--ram=0",
            "--ram=lots",
        ),
    ],
)
def test_options_that_cannot_be(argument: str) -> None:
    image = () if argument.startswith("--ram") else ("--blk-file=x",)
    with pytest.raises(argparse.ArgumentError, match=argument.partition("=")[0]):
        options(*image, argument)


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        (["-b", "x"], "blk_file", "x"),
        (["-bx", "-r"], "read_only", True),
        (["-rbx"], "blk_file", "x"),
        (["-bx", "--cache=none"], "cache", "direct"),
    ],
)
def test_what_users_of_qemu_type_is_understood(arguments: list[str], name: str, value: object) -> None:
    assert getattr(options(*arguments), name) == value


@pytest.mark.parametrize(
    ("argument", "answer"),
    [
        ("--cache=unsafe", "'unsafe' is not offered: .* --ram keeps none"),
        ("--cache=directsync", "'directsync' is not offered: --cache=writethrough"),
        ("--aio=native", "'native', the older interface of Linux, is not used: leave --aio out"),
    ],
)
def test_what_users_of_qemu_type_is_answered(argument: str, answer: str) -> None:
    with pytest.raises(argparse.ArgumentError, match=answer):
        options("--blk-file=x", argument)


def test_a_poll_that_would_keep_signals_waiting_cannot_be() -> None:
    """SIGTERM is to end the program within 100 ms; the event loop cannot serve it while a queue is polled."""
    with pytest.raises(argparse.ArgumentError, match="--poll-us"):
        options("--ram=1M", "--poll-us=1000000")


@pytest.mark.parametrize("arguments", [(), ("--blk-file=x", "--ram=1M")])
def test_one_image(arguments: tuple[str, ...]) -> None:
    with pytest.raises((argparse.ArgumentError, SystemExit)):
        options(*arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        *(
            (("--ram=1M", option), UsageError, f"{option} makes no sense with --ram")
            for option in ("--read-only", "--cache=direct", "--locking=on", "--share-rw")
        ),
        (("--ram=1M", "--cache=none"), UsageError, "--cache=direct makes no sense with --ram"),
        (("--ram=1M", "--format=raw"), UsageError, "--format makes no sense with --ram"),
        (
            ("--ram=100T",),
            SetupError,
            "--ram=109951162777600: more bytes than this host's memory has, ",
        ),
        (("--ram=1",), UsageError, "--ram=1: not a whole number of blocks of 512 bytes"),
        (("--ram=2K", "--logical-block-size=4K"), UsageError, "--ram=2048: not a whole number of blocks of"),
        (("--blk-file=/missing",), SetupError, "--blk-file=/missing: No such file or directory"),
        (("--blk-file=/dev/null",), SetupError, "neither a file nor a block device"),
        (
            ("--ram=1M", "--logical-block-size=4096", "--physical-block-size=512"),
            UsageError,
            "--physical-block-size=512 is less than the logical one, 4096",
        ),
    ],
)
def test_options_that_contradict(arguments: tuple[str, ...], error: type[SetupError], text: str) -> None:
    with pytest.raises(error, match=text):
        make(*arguments)


def test_memory_that_may_not_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a limit of the size of files (ulimit -f)."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

    monkeypatch.setattr(os, "ftruncate", refuse)
    with pytest.raises(SetupError, match="--ram=1048576: File too large"):
        make("--ram=1M")


def test_blocks_smaller_than_the_host_s(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from vhostd.storage.image import Image

    monkeypatch.setattr(Image, "_least_transfer", lambda _: 4096)
    with skipped_without("no --cache=direct"):
        for arguments, wanted in (((), 512), (("--logical-block-size=4096",), 4096)):
            device = make(f"--blk-file={path}", "--cache=direct", *arguments)
            assert VirtioBlkConfig.unpack(device.read_config()).blk_size == wanted
            device.close()


def test_a_file_that_is_in_use(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locking, "PATIENCE", 0)
    device = make(f"--blk-file={path}")
    with pytest.raises(SetupError, match="another program has it in use"):
        make(f"--blk-file={path}", "--read-only")
    make(f"--blk-file={path}", "--read-only", "--share-rw").close()
    make(f"--blk-file={path}", "--locking=off").close()
    device.close()
    make(f"--blk-file={path}", "--read-only").close()


def test_a_file_of_another_format(path: str) -> None:
    with open(path, "r+b") as file:
        file.write(b"QFI\xfb\0\0\0\3")
    with pytest.raises(SetupError, match=r"looks like an image in qcow2 format.* --format=raw if"):
        make(f"--blk-file={path}")
    make(f"--blk-file={path}", "--format=raw").close()


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ((), (512, 3, 64, 126, 1)),
        (("--logical-block-size=4096",), (4096, 0, 64, 126, 1)),
        (("--logical-block-size=1024", "--physical-block-size=8192"), (1024, 3, 64, 126, 1)),
        (("--num-queues=4", "--queue-size=256"), (512, 3, 4, 254, 1)),
        (("--cache=writethrough",), (512, 3, 64, 126, 0)),
    ],
)
def test_what_the_options_do_to_the_config_space(
    path: str, arguments: tuple[str, ...], wanted: tuple[int, ...]
) -> None:
    os.truncate(path, SIZE)
    device = make(f"--blk-file={path}", *arguments)
    read = VirtioBlkConfig.unpack(device.read_config())
    assert (read.blk_size, read.physical_block_exp, read.num_queues, read.seg_max, read.writeback) == wanted
    assert len(device.queues) == wanted[2]
    device.close()


@pytest.mark.parametrize("image", ["file", "ram"])
def test_an_image_that_is_to_stay_allocated(run_async: Run, path: str, image: str) -> None:
    """Neither a discard nor zeroes that may unmap make a hole."""

    async def main() -> None:
        disk = f"--blk-file={path}" if image == "file" else f"--ram={SIZE}"
        device = make(disk, "--discard=off")
        fd = device._requests.image.fd
        assert not device.features >> FEATURE_DISCARD & 1
        assert device.features >> FEATURE_WRITE_ZEROES & 1
        async with driven(device) as (frontend, driver):
            assert not (await config_of(frontend)).write_zeroes_may_unmap
            await driver.write(0, noise(SIZE))
            before = os.fstat(fd).st_blocks
            with pytest.raises(FailedRequest) as raised:
                await driver.discard((0, 64))
            assert raised.value.status == UNSUPP
            assert await driver.read(0, SIZE) == noise(SIZE)
            await driver.write_zeroes((0, 64), unmap=True)
            assert await driver.read(0, SIZE) == bytes(64 * SECTOR) + noise(SIZE)[64 * SECTOR :]
            assert os.fstat(fd).st_blocks >= before

    run_async(main)


# --- The cache ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dropped", "writeback"),
    [(0, 1), (FLUSH_BIT, 0), (FLUSH_BIT | CONFIG_WCE_BIT, None), (CONFIG_WCE_BIT, None)],
    ids=["both", "no-flush", "neither", "no-wce"],
)
def test_a_driver_that_cannot_flush_need_not(
    run_async: Run, path: str, dropped: int, writeback: int | None
) -> None:
    """5.2.6.2: with neither FLUSH nor CONFIG_WCE a write is stable once it is completed.

    5.2.5.2: with CONFIG_WCE and without FLUSH, `writeback` is 0 at first.
    """

    async def main() -> None:
        device = make(f"--blk-file={path}")
        async with driven(device, features=~dropped) as (frontend, driver):
            if writeback is not None:
                assert (await config_of(frontend)).writeback == writeback
            recording = Recording(device._requests.engine)
            device._requests.engine = device._requests.disk.engine = recording
            await driver.write(0, noise(SECTOR, 1))
            assert (recording.flags == [os.RWF_DSYNC]) == bool(dropped & FLUSH_BIT)

    run_async(main)


def test_the_driver_switches_the_cache(run_async: Run, path: str) -> None:
    async def main() -> None:
        async with driven(make(f"--blk-file={path}")) as (frontend, driver):
            await frontend.call(SET_CONFIG, ConfigSpace(WCE, b"\0"))
            assert (await config_of(frontend)).writeback == 0
            await driver.write(1, noise(SECTOR, 1))
            await refused(frontend.call(SET_CONFIG, ConfigSpace(WCE, b"\2")))
            await refused(frontend.call(SET_CONFIG, ConfigSpace(0, bytes(8))))
            whole = (await frontend.call(GET_CONFIG, ConfigSpace(0, bytes(60)))).data
            around = whole[WCE + 1 : WCE + 4]  # as OpenVMM writes, four bytes at a time
            await refused(frontend.call(SET_CONFIG, ConfigSpace(WCE, b"\1\1" + around[1:])))
            assert (await config_of(frontend)).writeback == 0
            await frontend.call(SET_CONFIG, ConfigSpace(WCE, b"\1" + around))
            assert (await config_of(frontend)).writeback == 1
            await frontend.call(SET_CONFIG, ConfigSpace(0, whole))
            assert (await config_of(frontend)).writeback == 0
            assert (await config_of(frontend)).writeback == 0
            await frontend.call(RESET_DEVICE, Empty())  # QEMU's, of which the driver may know nothing
            assert (await config_of(frontend)).writeback == 0
            await frontend.call(SET_CONFIG, ConfigSpace(WCE, b"\1"))
            assert (await config_of(frontend)).writeback == 1

    run_async(main)


def test_the_next_front_end_finds_the_cache_as_it_was_at_first(run_async: Run, path: str) -> None:
    async def main() -> None:
        device = make(f"--blk-file={path}", "--cache=writethrough")
        async with negotiated(device) as (frontend, _):
            await frontend.call(SET_CONFIG, ConfigSpace(WCE, b"\1"))
        async with driven(device) as (frontend, driver):
            assert (await config_of(frontend)).writeback == 0
            assert await driver.read(0, SIZE) == noise(SIZE)

    run_async(main)


def test_a_driver_of_another_time_has_its_writes_durable(path: str) -> None:
    """It may have switched the cache off when another program served it."""
    device = make(f"--blk-file={path}")
    device.resume()
    assert VirtioBlkConfig.unpack(device.read_config()).writeback == 0
    device.close()


# --- Growth ---------------------------------------------------------------------------------------------


async def announced(requests: Channel) -> None:
    """Waits for the word that the config space is new, and acks it."""
    message = await requests.receive()
    assert message is not None
    assert message.request == CONFIG_CHANGE_MSG.request


@pytest.mark.parametrize("by_signal", [True, False], ids=["sighup", "look"])
def test_an_image_that_grows_under_a_running_guest(
    run_async: Run,
    path: str,
    by_signal: bool,  # noqa: FBT001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vhostd.storage.size_watch.LOOK_INTERVAL", 3600.0 if by_signal else 0.001)

    async def main() -> None:
        device = make(f"--blk-file={path}")
        async with driven(device) as (frontend, driver), backend_requests(frontend) as requests:
            living = asyncio.create_task(device.run())
            await asyncio.sleep(0)
            for size in (2 * SIZE, SIZE // 2):
                os.truncate(path, size)
                if by_signal:
                    device.signals()["SIGHUP"]()
                await announced(requests)
                assert (await config_of(frontend)).capacity == size // SECTOR
                assert await driver.read(size // SECTOR - 1, SECTOR) == (
                    bytes(SECTOR) if size > SIZE else noise(SIZE)[size - SECTOR : size]
                )
                with pytest.raises(FailedRequest):
                    await driver.read(size // SECTOR, SECTOR)
            living.cancel()
            await asyncio.wait([living])

    run_async(main)


# --- Queues, polling and limits -------------------------------------------------------------------------


@pytest.mark.parametrize("aio", ["threads", "sync"])
def test_several_queues_share_the_disk(run_async: Run, path: str, aio: str) -> None:
    async def main() -> None:
        device = make(f"--blk-file={path}", "--num-queues=3", f"--aio={aio}")
        async with driven(device, queues=3) as (frontend, driver):
            assert (await frontend.call(GET_QUEUE_NUM, Empty())).value == 3
            await asyncio.gather(*(driver.write(8 * i, noise(4096, i)) for i in range(60)))
            await driver.flush()
            read = await asyncio.gather(*(driver.read(8 * i, 4096) for i in range(60)))
            assert read == [noise(4096, i) for i in range(60)]
            with pytest.raises(FailedRequest) as raised:
                await driver.request(99)
            assert raised.value.status == UNSUPP

    run_async(main)


def test_features_that_are_offered(run_async: Run, path: str) -> None:
    async def main() -> None:
        device = make(f"--blk-file={path}", "--read-only")
        async with driven(device) as (frontend, driver):
            offered = (await frontend.call(GET_FEATURES, Empty())).value
            assert offered & 0xFFFFFF == 1 << 1 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 6 | 0b1111 << 9
            with pytest.raises(FailedRequest):
                await driver.write(0, bytes(SECTOR))

    run_async(main)


@pytest.mark.parametrize("poll", ["--poll-us=1", "--poll-us=10000"])
def test_requests_while_polling(run_async: Run, path: str, poll: str) -> None:
    async def main() -> None:
        async with driven(make(f"--blk-file={path}", poll)) as (_, driver):
            answers = await asyncio.gather(*(driver.read(i, SECTOR) for i in range(300)))
            assert answers == [noise(SIZE)[i * SECTOR : (i + 1) * SECTOR] for i in range(300)]
            await asyncio.gather(driver.flush(), driver.write(0, noise(SECTOR, 1)), driver.flush())
            assert await driver.read(0, SECTOR) == noise(SECTOR, 1)

    run_async(main)


def test_a_request_that_comes_while_polling_needs_no_kick(
    run_async: Run, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        device = make(f"--blk-file={path}", "--poll-us=100")
        try:
            async with negotiated(device) as (frontend, memory):
                queue = await frontend.start(memory)
                ask = HEADER.pack(IN, 0, 1)
                clock = Clock(10e-6, at_4=lambda: queue.add(ask, SECTOR + 1))
                queue.add(ask, SECTOR + 1)
                with monkeypatch.context() as patched:
                    patched.setattr(time, "perf_counter", clock)
                    queue.kick()
                    answers = [await queue.used(), await queue.used()]
                assert [data for _, data in answers] == [noise(SIZE)[SECTOR : 2 * SECTOR] + b"\0"] * 2
                assert 4 < clock.looks < 40, "and it ended when nothing more came"
                queue.close()
        finally:
            device.close()

    run_async(main)


def test_no_polling_while_others_are_under_way(
    run_async: Run, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event loop is needed for their end."""

    async def main() -> None:
        clock = Clock(0.0)
        async with driven(make(f"--blk-file={path}", "--poll-us=10000", "--aio=threads")) as (_, driver):
            with monkeypatch.context() as patched:
                patched.setattr(time, "perf_counter", clock)  # it stands still: a poll would never end
                await driver.flush()

    run_async(main)


class Meter:
    """In place of a throttle: notes what is spent and says how long to rest."""

    def __init__(self, *rests: float) -> None:
        self.spent: list[int] = []
        self._rests = [*rests]

    def spend(self, size: int) -> float:
        self.spent.append(size)
        return self._rests.pop(0) if self._rests else 0.0


def test_what_a_request_costs(run_async: Run, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        device = make(f"--blk-file={path}", "--rate-iops=1000", "--rate-bytes=1G")
        meter = Meter()
        monkeypatch.setattr(device, "_throttle", meter)
        async with driven(device) as (_, driver):
            await driver.read(0, 4096)
            await driver.write(0, bytes(1024))
            assert meter.spent == [16 + 4096 + 1, 16 + 1024 + 1]

    run_async(main)


def test_what_the_limit_costs_is_counted(run_async: Run, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[float] = []
    monkeypatch.setattr(Virtqueue, "count_throttled", lambda _, seconds: counted.append(seconds))

    async def main() -> None:
        device = make(f"--blk-file={path}", "--rate-iops=1")
        monkeypatch.setattr(device, "_throttle", Meter(0.001, 0.0, 0.002))
        async with driven(device) as (_, driver):
            for _ in range(4):
                await driver.flush()
        assert counted == [0.001, 0.002]

    run_async(main)


def test_over_the_limit_the_queue_rests_and_can_be_stopped(
    run_async: Run, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        device = make(f"--blk-file={path}", "--rate-iops=1")
        monkeypatch.setattr(device, "_throttle", Meter(0.0, 3600.0))
        try:
            async with negotiated(device) as (frontend, memory):
                queue = await frontend.start(memory)
                for _ in range(5):
                    queue.add(HEADER.pack(FLUSH, 0, 0), 1)
                queue.kick()
                assert [(await queue.used())[1] for _ in range(2)] == [b"\0"] * 2
                assert await frontend.stop(queue) == 2
                assert queue.poll() is None
                queue.close()
        finally:
            device.close()

    run_async(main)


def test_a_ring_that_stops_with_requests_in_flight(
    run_async: Run, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GET_VRING_BASE is answered when all that was taken has been used."""
    begun, let_go = threading.Semaphore(0), threading.Event()

    def sync(_: int) -> None:
        begun.release()
        let_go.wait()

    async def main() -> None:
        monkeypatch.setattr(os, "fdatasync", sync)
        device = make(f"--blk-file={path}", "--aio=threads")
        try:
            async with negotiated(device) as (frontend, memory):
                queue = await frontend.start(memory)
                slow = [queue.add(HEADER.pack(FLUSH, 0, 0), 1) for _ in range(3)]
                fast = queue.add(HEADER.pack(IN, 0, 0), SECTOR + 1)
                queue.kick()
                assert await queue.used() == (fast, noise(SIZE)[:SECTOR] + b"\0")
                for _ in slow:
                    await asyncio.to_thread(begun.acquire)
                stopping = asyncio.create_task(frontend.stop(queue))
                await asyncio.wait([stopping], timeout=0.01)
                assert not stopping.done()
                let_go.set()
                assert await stopping == 4
                assert sorted(queue.poll() or () for _ in slow) == [(head, b"\0") for head in sorted(slow)]
                assert queue.poll() is None
                queue.close()
        finally:
            let_go.set()
            device.close()

    run_async(main)
