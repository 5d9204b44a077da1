"""The device: its options, its config space, and what becomes of the front-end's socket."""

import argparse
import asyncio
import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

import vhost_user_gpu
from tests.conftest import Run
from tests.devices.vhost_user_gpu.guest import (
    COMMANDS,
    RESPONSES,
    ROOM,
    Command,
    Guest,
    create_2d,
    get_display_info,
    get_edid,
    move_cursor,
    set_scanout,
)
from vhost_user_gpu import MANIFEST
from vhost_user_gpu import device as gpu_device
from vhost_user_gpu.device import Gpu
from vhostd import DeviceType, RefusedRequest, SetupError, UsageError
from vhostd.frontend.drivers.gpu import ERR_SCANOUT, HEADER, OK, OK_DISPLAY_INFO, OK_EDID
from vhostd.frontend.drivers.gpu_display import GpuDisplay
from vhostd.virtio.link import Link
from vhostd.virtio.virtqueue import Virtqueue

ROOT = Path(__file__).parents[3]
MODE = struct.Struct("<IIIIII")


def options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(exit_on_error=False)
    Gpu.add_options(parser)
    return parser.parse_args(arguments)


@pytest.fixture
def device() -> Iterator[Gpu]:
    device = Gpu.from_options(options())
    device.negotiated = device.features
    yield device
    device.detach()
    device.close()


async def ask(device: Gpu, command: Command, queue: int = 0) -> tuple[int, bytes]:
    """The type of what a new driver is answered on that queue, and what follows the header."""
    guest, interrupted = Guest(), asyncio.Event()
    virtqueue = Virtqueue(queue, guest.ring, interrupted.set)
    virtqueue.enable(on=True)
    serving = asyncio.ensure_future(device.queues[queue](virtqueue))
    data = HEADER.pack(command.number, 0, 0, 0, 0) + command.body
    guest.memory.write(COMMANDS, data)
    guest.driver.add([(COMMANDS, len(data), False), (RESPONSES, ROOM, True)])
    virtqueue.kicked()
    await interrupted.wait()
    virtqueue.stop()
    await serving
    used = guest.driver.used()
    assert used is not None
    answer = guest.memory.read(RESPONSES, used[1])
    return HEADER.unpack_from(answer)[0], answer[HEADER.size :]


# --- Options --------------------------------------------------------------------------------------------


def test_what_it_is() -> None:
    assert Gpu.kind == DeviceType.GPU
    assert DeviceType.GPU == 16
    assert Gpu.features == 0b1110, "EDID, RESOURCE_UUID and RESOURCE_BLOB, neither VIRGL nor CONTEXT_INIT"


def test_capabilities_are_printed() -> None:
    features = list(vhost_user_gpu.capabilities())
    assert json.loads(str(MANIFEST)) == {"type": "gpu", "features": features}


def test_capabilities_are_what_the_host_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vhost_user_gpu, "NODES", str(tmp_path))
    monkeypatch.setattr(vhost_user_gpu, "VIRGL", "libnone.so.1")
    assert vhost_user_gpu.capabilities() == ()
    monkeypatch.setattr(vhost_user_gpu, "VIRGL", "libm.so.6")
    assert vhost_user_gpu.capabilities() == ("virgl",)
    (tmp_path / "renderD128").touch()
    assert vhost_user_gpu.capabilities() == ("render-node", "virgl")


def test_the_description() -> None:
    description = json.loads((ROOT / "share/vhost-user/50-vhostd-gpu.json").read_text())
    assert (description["type"], Path(description["binary"]).name) == ("gpu", "vhost-user-gpu")


def test_defaults() -> None:
    chosen = options()
    assert (chosen.scanouts, chosen.resolution, chosen.max_memory) == (1, (1280, 800), None)
    assert (chosen.screenshot, chosen.virgl, chosen.render_node) == (None, False, None)


@pytest.mark.parametrize(
    ("argument", "name", "value"),
    [
        ("--scanouts=1", "scanouts", 1),
        ("--scanouts=16", "scanouts", 16),
        ("--scanouts=07", "scanouts", 7),
        ("--resolution=1x1", "resolution", (1, 1)),
        ("--resolution=16384x16384", "resolution", (16384, 16384)),
        ("--resolution=1920x1080", "resolution", (1920, 1080)),
        ("--max-memory=1", "max_memory", 1),
        ("--max-memory=1G", "max_memory", 1 << 30),
        ("--screenshot=/tmp/a.png", "screenshot", "/tmp/a.png"),
    ],
)
def test_option(argument: str, name: str, value: object) -> None:
    assert getattr(options(argument), name) == value


@pytest.mark.parametrize("text", ["", ".", "/"])
def test_screenshots_that_cannot_be(text: str) -> None:
    with pytest.raises(argparse.ArgumentError, match="is not a file's name"):
        options(f"--screenshot={text}")


def test_a_folder_for_screenshots_must_be_there(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in ("missing", "file"):
        with pytest.raises(SetupError, match=f"--screenshot=.*: .*/{folder} is no folder"):
            Gpu.from_options(options(f"--screenshot={tmp_path / folder / 'a.png'}"))
    Gpu.from_options(options(f"--screenshot={tmp_path / 'a.png'}")).close()


def test_a_folder_is_no_file_for_screenshots(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=f"--screenshot={tmp_path} is a folder, not a file's name"):
        Gpu.from_options(options(f"--screenshot={tmp_path}"))


def test_screenshots_may_be_written_in_that_folder_and_in_none_that_takes_its_place(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    before = folder.stat()
    with closing(Gpu.from_options(options(f"--screenshot={folder / 'a.png'}"))) as gpu:
        folder.rename(tmp_path / "away")
        folder.symlink_to("/etc")
        (granted,) = gpu.grants().written
        assert os.path.samestat(os.stat(granted), before)


@pytest.mark.parametrize("text", ["0", "17", "016", "-1", "", "two", "1.0", "0x1", " 1", "99999999999"])
def test_scanouts_that_cannot_be(text: str) -> None:
    with pytest.raises(argparse.ArgumentError, match="--scanouts"):
        options(f"--scanouts={text}")


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "1280", "1280x", "x800", "0x800", "1280x0", "16385x1", "1x16385", "-1x1", "1280*800"),
        *("1280x800x1", "1280 x 800", "1280X800", "100000x1", "999999999999x1"),
    ],
)
def test_resolutions_that_cannot_be(text: str) -> None:
    with pytest.raises(argparse.ArgumentError, match="--resolution"):
        options(f"--resolution={text}")


@pytest.mark.parametrize("text", ["", "0", "-1", "1.3K", "lots", "256MB"])
def test_sizes_that_cannot_be(text: str) -> None:
    with pytest.raises(argparse.ArgumentError, match="--max-memory"):
        options(f"--max-memory={text}")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--max-memory=10"], "--max-memory=10: one picture of 1280x800 takes 4096000 bytes"),
        (["--resolution=16384x16384"], "--max-memory=268435456: .* takes 1073741824 bytes"),
        (["--max-memory=4799", "--resolution=40x30"], "takes 4800 bytes"),
    ],
)
def test_memory_for_no_picture_at_all(arguments: list[str], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        Gpu.from_options(options(*arguments))
    Gpu.from_options(options("--max-memory=4800", "--resolution=40x30")).close()


@pytest.mark.parametrize("argument", ["-r/nonexistent", "--render-node=/nonexistent"])
def test_a_render_node_that_is_not_there(argument: str) -> None:
    with pytest.raises(SetupError, match="--render-node=/nonexistent: there is no such device"):
        Gpu.from_options(options(argument))


def test_a_render_node_alone_changes_nothing() -> None:
    """libvirt names one wherever it finds one."""
    gpu = Gpu.from_options(options("--render-node=/dev/null"))
    assert gpu.features == Gpu.features
    gpu.close()


def test_the_import_is_cheap() -> None:
    """It is on the way to every --print-capabilities."""
    code = "import sys, vhost_user_gpu; print(*sys.modules)"
    path = [str(ROOT), str(ROOT / "devices"), *filter(None, sys.path)]
    loaded = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {path!r}; {code}"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    heavy = {"asyncio", "uvloop", "argparse", "logging", "dataclasses", "pathlib", "struct", "mmap", "socket"}
    assert not heavy & set(loaded)


# --- Queues and the config space --------------------------------------------------------------------------


def test_options_take_effect(run_async: Run) -> None:
    device = Gpu.from_options(options("--scanouts=2", "--resolution=40x30", "--max-memory=10K"))

    async def main() -> None:
        modes = MODE.pack(0, 0, 40, 30, 1, 0) + MODE.pack(40, 0, 40, 30, 1, 0) + bytes(14 * 24)
        assert await ask(device, get_display_info()) == (OK_DISPLAY_INFO, modes)
        assert await ask(device, create_2d(1, 32, 32)) == (OK, b"")
        assert await ask(device, create_2d(2, 64, 64)) == (0x1201, b"")
        assert await ask(device, set_scanout(1, 0)) == (OK, b"")
        assert await ask(device, set_scanout(2, 0)) == (ERR_SCANOUT, b"")

    assert device.read_config() == bytes.fromhex("00000000 00000000 02000000 00000000 00000000")
    run_async(main)
    device.close()


def test_both_queues(run_async: Run, device: Gpu) -> None:
    async def main() -> None:
        assert len(device.queues) == 2
        for queue in (0, 1):
            assert await ask(device, move_cursor(0, 1, 2), queue) == (OK, b"")

    run_async(main)


def test_features_that_were_not_negotiated(run_async: Run, device: Gpu) -> None:
    async def main() -> None:
        assert (await ask(device, get_edid(0)))[0] == OK_EDID
        device.negotiated = 0
        assert await ask(device, get_edid(0)) == (0x1200, b"")

    run_async(main)


def test_the_config_space(device: Gpu) -> None:
    space = bytes.fromhex("00000000 00000000 01000000 00000000 00000000")
    assert device.read_config() == space
    device.write_config(0, b"\xff" * 20)
    device.write_config(4, b"\1\0\0\0")
    assert device.read_config() == space
    with pytest.raises(RefusedRequest):
        device.write_config(8, b"\2\0\0\0")


# --- The front-end's socket -------------------------------------------------------------------------------


class Telling(Link):
    """A front-end that is told of config changes."""

    def __init__(self, told: asyncio.Event) -> None:
        self._told = told

    def config_changed(self) -> None:
        self._told.set()


def show(device: Gpu, *modes: tuple[int, int]) -> GpuDisplay:
    ours, theirs = socket.socketpair()
    device.show_on(ours)
    return GpuDisplay(theirs, modes=modes)


def test_a_front_end_has_all_scan_outs(run_async: Run, device: Gpu) -> None:
    async def main() -> None:
        assert await ask(device, set_scanout(1, 0)) == (ERR_SCANOUT, b"")
        display = show(device, (800, 600))
        assert await ask(device, set_scanout(15, 0)) == (OK, b"")
        device.detach()
        await display.until(lambda: display.is_over)
        assert await ask(device, set_scanout(1, 0)) == (ERR_SCANOUT, b"")
        display.close()

    run_async(main)


def test_a_front_end_takes_its_monitors_along(run_async: Run, device: Gpu) -> None:
    async def main() -> None:
        ours = await ask(device, get_display_info())
        display = show(device, (800, 600), (640, 480))
        assert await ask(device, get_display_info()) != ours
        device.detach()
        await display.until(lambda: display.is_over)
        display.close()
        assert await ask(device, get_display_info()) == ours

    run_async(main)


def test_the_driver_is_told_of_other_monitors(
    run_async: Run, device: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_device, "NEWS_PATIENCE", 0)

    async def main() -> None:
        told = asyncio.Event()
        device.attach(Telling(told))
        first = show(device, (800, 600))
        modes = MODE.pack(0, 0, 800, 600, 1, 0)
        assert (await ask(device, get_display_info()))[1].startswith(modes)
        assert device.read_config()[0] == 0
        second = show(device, (1024, 768))
        await told.wait()
        assert device.read_config()[0] == 1
        device.write_config(4, b"\1\0\0\0")
        assert device.read_config()[0] == 0
        modes = MODE.pack(0, 0, 1024, 768, 1, 0)
        assert (await ask(device, get_display_info()))[1].startswith(modes)
        device.detach()
        for display in (first, second):
            await display.until(lambda display=display: display.is_over)  # type: ignore[misc]
            display.close()

    run_async(main)


def test_reset_takes_events_back(run_async: Run, device: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_device, "NEWS_PATIENCE", 0)

    async def main() -> None:
        told = asyncio.Event()
        device.attach(Telling(told))
        await ask(device, get_display_info())
        display = show(device, (1024, 768))
        await told.wait()
        device.reset()
        assert device.read_config()[0] == 0
        device.detach()
        await display.until(lambda: display.is_over)
        display.close()

    run_async(main)
