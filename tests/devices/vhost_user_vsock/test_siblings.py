"""Two guests that talk to each other, through the sockets of their programs."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.conftest import Run
from tests.devices.vhost_user_vsock.rig import CID, PATIENCE, rig, running
from tests.sessions import negotiated
from vhost_user_vsock import switchboard
from vhost_user_vsock.device import Vsock
from vhostd.frontend import VsockDriver
from vhostd.frontend.drivers.vsock import REQUEST, RST, SEQ_EOM, SEQPACKET, STREAM, Packet
from vhostd.program.command_line import CommandLine
from vhostd.program.options import parse

PORT = 5000
OTHER = 8  # the other guest


@asynccontextmanager
async def other_guest(path: Path, *options: str) -> AsyncIterator[VsockDriver]:
    """A guest with another CID."""
    arguments = ("vsock", f"--guest-cid={OTHER}", f"--uds-path={path}", *options)
    device = Vsock.from_options(parse(Vsock, CommandLine(list(arguments))))
    async with running(device), negotiated(device, size=32 << 20) as (frontend, memory):
        driver = await VsockDriver.start(frontend, memory)
        try:
            async with asyncio.timeout(PATIENCE):
                yield driver
        finally:
            driver.close()


@pytest.mark.parametrize("kind", [1, SEQPACKET])
def test_guests_reach_each_other(tmp_path: Path, run_async: Run, kind: int) -> None:
    other = tmp_path / "other"

    async def main() -> None:
        async with (
            rig(tmp_path, f"--sibling={OTHER}={other}") as there,
            other_guest(other, f"--sibling={CID}={there.path}") as theirs,
        ):
            theirs.listen(PORT)
            near = await there.driver.connect(PORT, cid=OTHER, kind=kind)
            far = await theirs.accept(PORT)
            assert far.peer == (CID, near.local_port)
            assert far.kind == kind
            await near.send(b"question")
            assert await far.receive_message() == (b"question", SEQ_EOM) if kind == SEQPACKET else True
            await far.send(bytes(100_000))
            if kind == SEQPACKET:
                assert await near.receive_message() == (bytes(100_000), SEQ_EOM)
            else:
                assert await near.receive_exactly(100_000) == bytes(100_000)
            with pytest.raises(ConnectionRefusedError):
                await there.driver.connect(PORT + 1, cid=OTHER, kind=kind)

    run_async(main)


def test_a_guest_that_is_no_sibling_is_not_reached(tmp_path: Path, run_async: Run) -> None:
    other = tmp_path / "other"

    async def main() -> None:
        async with rig(tmp_path, f"--sibling={OTHER}={other}") as there, other_guest(other) as theirs:
            theirs.listen(PORT)
            for cid in (OTHER, OTHER + 1, 1, 1 << 40):
                with pytest.raises(ConnectionRefusedError):
                    await there.driver.connect(PORT, cid=cid)

    run_async(main)


def test_nobody_else_speaks_in_the_name_of_a_guest(tmp_path: Path, run_async: Run) -> None:
    async def main() -> None:
        async with rig(tmp_path, f"--sibling={OTHER}={tmp_path / 'other'}") as there:
            there.driver.listen(PORT)
            client = await there.client(b"CONNECT 5000 FROM 9:1\n")
            assert await there.receive(client) == b""
            client = await there.client(b"CONNECT 5000 FROM 8:1\n")
            assert (await there.driver.accept(PORT)).peer == (OTHER, 1)
            again = await there.client(b"CONNECT 5000 FROM 8:1\n")
            assert await there.receive(again) == b""

    run_async(main)


def test_a_program_that_does_not_answer_is_given_up(
    tmp_path: Path, run_async: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other guest is off."""
    monkeypatch.setattr(switchboard, "LINK_TIMEOUT", 0.05)
    other = tmp_path / "other"

    async def main() -> None:
        async with (
            rig(tmp_path, f"--sibling={OTHER}={other}", "--max-connections=2") as there,
            other_guest(other, f"--sibling={CID}={there.path}", "--max-connections=2") as theirs,
        ):
            theirs.listen(PORT)
            theirs._called_by = lambda packet: None  # type: ignore[method-assign]
            server = there.serve(PORT)
            connecting = [asyncio.create_task(there.driver.connect(PORT, cid=OTHER)) for _ in range(2)]
            await asyncio.wait(connecting)
            assert [type(task.exception()) for task in connecting] == [ConnectionRefusedError] * 2
            await there.driver.connect(PORT)
            await there.accept(server)

    run_async(main)


@pytest.mark.parametrize("kinds", [(STREAM, SEQPACKET), (SEQPACKET, STREAM)])
def test_a_request_of_another_type_leaves_the_first_one_alone(
    tmp_path: Path, run_async: Run, kinds: tuple[int, int]
) -> None:
    other = tmp_path / "other"

    async def main() -> None:
        async with (
            rig(tmp_path, f"--sibling={OTHER}={other}") as there,
            other_guest(other, f"--sibling={CID}={there.path}") as theirs,
        ):
            theirs.listen(PORT)
            near = await there.driver.connect(PORT, cid=OTHER, kind=kinds[0], local_port=1024)
            far = await theirs.accept(PORT)
            near.take = lambda packet, data: answers.append(packet)  # type: ignore[method-assign]
            answers: list[Packet] = []
            await there.driver.send(
                Packet(
                    src_cid=CID,
                    dst_cid=OTHER,
                    src_port=1024,
                    dst_port=PORT,
                    len=0,
                    type=kinds[1],
                    op=REQUEST,
                    flags=0,
                    buf_alloc=1 << 18,
                    fwd_cnt=0,
                )
            )
            await near.send(b"the same")
            assert await far.receive() == b"the same"
            assert [(answer.op, answer.type) for answer in answers] == [(RST, kinds[1])]
            there.device.reset()
            assert not there.device._board._open

    run_async(main)


def test_a_program_that_answers_nonsense_is_no_sibling(tmp_path: Path, run_async: Run) -> None:
    other = tmp_path / "other"

    async def main() -> None:
        async with rig(tmp_path, f"--sibling={OTHER}={other}") as there:
            with socket.socket(socket.AF_UNIX) as server:
                server.setblocking(False)
                server.bind(str(other))
                server.listen()
                for answer in (b"NO\n", b"OK", b""):
                    connecting = asyncio.create_task(there.driver.connect(PORT, cid=OTHER))
                    client = await there.accept(server)
                    await there.send(client, answer)
                    client.shutdown(socket.SHUT_WR)
                    with pytest.raises(ConnectionRefusedError):
                        await connecting

    run_async(main)
