"""AF_VSOCK on the host's side. What needs the kernel's loopback runs in a guest as well, which has it."""

import asyncio
import socket
from pathlib import Path

import pytest

from tests.conftest import Run
from tests.devices.vhost_user_vsock.rig import forwarding
from vhostd.errors import SetupError, UsageError
from vhostd.frontend.drivers.vsock import SEQ_EOM, SEQ_EOR, SEQPACKET

PORT, OTHER = 5000, 5001
LOCAL = 1
KINDS = {1: socket.SOCK_STREAM, SEQPACKET: socket.SOCK_SEQPACKET}


def has_loopback() -> bool:
    """Whether AF_VSOCK leads from this machine to itself."""
    try:
        with socket.socket(socket.AF_VSOCK) as sock:
            sock.bind((LOCAL, socket.VMADDR_PORT_ANY))
            return True
    except OSError:
        return False


needs_loopback = pytest.mark.skipif(not has_loopback(), reason="the module vsock_loopback is not loaded")


@needs_loopback
@pytest.mark.parametrize("kind", KINDS)
def test_a_guest_reaches_an_af_vsock_server(tmp_path: Path, run_async: Run, kind: int) -> None:
    async def main() -> None:
        async with forwarding(tmp_path, LOCAL) as there:
            with socket.socket(socket.AF_VSOCK, KINDS[kind]) as server:
                server.setblocking(False)
                server.bind((LOCAL, PORT))
                server.listen()
                ours = await there.driver.connect(PORT, kind=kind)
                theirs = await there.accept(server)
            await ours.send(b"question", SEQ_EOR)
            assert await there.receive(theirs) == b"question"
            await there.send(theirs, bytes(100_000))
            if kind == SEQPACKET:
                assert await ours.receive_message() == (bytes(100_000), SEQ_EOM)
            else:
                assert await ours.receive_exactly(100_000) == bytes(100_000)
            theirs.shutdown(socket.SHUT_WR)
            assert await ours.receive() == b""
            await ours.close()

    run_async(main)


@needs_loopback
def test_an_af_vsock_client_reaches_the_guest(tmp_path: Path, run_async: Run) -> None:
    async def main() -> None:
        async with forwarding(tmp_path, LOCAL, f"--forward-listen={OTHER}+{OTHER + 1}") as there:
            there.driver.listen(OTHER)
            with socket.socket(socket.AF_VSOCK) as client:
                client.setblocking(False)
                connecting = asyncio.get_running_loop().sock_connect(client, (LOCAL, OTHER))
                _, ours = await asyncio.gather(connecting, there.driver.accept(OTHER))
                await ours.send(b"hello")
                assert await there.receive(client) == b"hello"
                await there.send(client, b"hello, too")
                assert await ours.receive() == b"hello, too"

    run_async(main)


@needs_loopback
def test_nobody_listens_there(tmp_path: Path, run_async: Run) -> None:
    async def main() -> None:
        async with forwarding(tmp_path, LOCAL) as there:
            with pytest.raises(ConnectionRefusedError):
                await there.driver.connect(PORT + 9)

    run_async(main)


def test_a_cid_that_is_not_this_machine_s_is_refused(tmp_path: Path, run_async: Run) -> None:
    async def main() -> None:
        with pytest.raises(SetupError, match="cannot listen at AF_VSOCK 77:1"):
            async with forwarding(tmp_path, 77, "--forward-listen=1"):
                pass

    run_async(main)


def test_a_port_is_a_number(tmp_path: Path, run_async: Run) -> None:
    async def main() -> None:
        for ports in ("", "1+", "1,2", "x", "99999999999"):
            with pytest.raises(UsageError):
                async with forwarding(tmp_path, LOCAL, f"--forward-listen={ports}"):
                    pass

    run_async(main)
