"""Back-ends that are reached, or not, and what is said of one that serves no more."""

import asyncio
import socket
from pathlib import Path

import pytest

from tests.conformance.backends import fake
from tests.conformance.fake import FEATURES
from tests.conftest import Run
from tests.programs import executable, listening
from vhostd.conformance import subject as module
from vhostd.conformance.subject import Subject
from vhostd.conformance.verdict import Failed
from vhostd.errors import SetupError
from vhostd.vhost_user.messages import GET_FEATURES, SET_OWNER, ProtocolFeature
from vhostd.virtio.vocabulary import Feature
from vhostd.wire.rows import Empty

RNG = f"{executable('vhost-user-rng')} --socket-path={{socket}}"
SHORT = 0.5  # seconds of patience with what never answers


async def own(subject: Subject) -> None:
    """Has a fake back-end do what it does."""
    frontend = await subject.connect()
    await frontend.tell(SET_OWNER, Empty())
    frontend.close()


def test_what_a_back_end_says_of_itself(run_async: Run) -> None:
    async def main() -> None:
        async with Subject(command=RNG, kind="rng") as subject:
            assert subject.has(Feature.VERSION_1)
            assert not subject.has(Feature.RING_RESET)
            assert subject.offers(ProtocolFeature.REPLY_ACK)
            assert not subject.offers(ProtocolFeature.MTU)
            assert subject.queue_num == 1
            assert subject.exchange is not None
            assert not subject.is_one_shot
            await subject.settle()

    run_async(main)


def test_one_that_runs_already_is_not_ended(run_async: Run, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with listening([executable("vhost-user-rng")], path) as program:

        async def main() -> None:
            for _ in range(2):
                async with Subject(socket=path) as subject:
                    assert subject.program is None
                    assert subject.exchange is None
                    await subject.settle()

        run_async(main)
        program.stop()


def test_one_without_protocol_features_has_one_queue(run_async: Run) -> None:
    async def main() -> None:
        async with Subject(command=fake("sound")) as subject:
            assert (subject.features, subject.protocol_features, subject.queue_num) == (FEATURES, 0, 1)
            await own(subject)
            await subject.settle()

    run_async(main)


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("true {socket}", "has ended with status 0"),
        ("sh -c 'echo no disk; exit 3' {socket}", "has ended with status 3, and has said: no disk"),
        ("/no/such/program {socket}", "No such file"),
        (fake("silent"), "it does not answer"),
    ],
)
def test_one_that_serves_nobody(run_async: Run, command: str, reason: str) -> None:
    async def main() -> None:
        with pytest.raises(SetupError, match=reason):
            async with Subject(command=command, patience=SHORT if "silent" in command else 10.0):
                pass

    run_async(main)


def test_a_socket_where_nobody_is(run_async: Run, tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(SetupError, match="No such file"):
            async with Subject(socket=tmp_path / "socket"):
                pass

    run_async(main)


@pytest.mark.parametrize(
    ("manner", "reason"),
    [
        ("dying", "the program was ended by SIGKILL: listening"),
        ("ending", "the program ended with status 1: it cannot go on"),
        ("hanging", "afterwards it served no new front-end: no answer"),
    ],
)
def test_one_that_serves_no_more_is_started_again(run_async: Run, manner: str, reason: str) -> None:
    async def main() -> None:
        async with Subject(command=fake(manner)) as subject:
            assert subject.program is not None
            first = subject.program.pid
            await own(subject)
            if manner == "hanging":
                subject.patience = SHORT
            else:
                await subject.program.ended()
            with pytest.raises(Failed, match=reason):
                await subject.settle()
            assert subject.program.pid != first
            subject.patience = module.PATIENCE
            await subject.settle()

    run_async(main)


@pytest.mark.parametrize("leaving", [0.0, 10.0])  # seconds: it is slow, or quick
def test_one_that_ends_with_its_front_end_is_started_for_the_next(
    run_async: Run, monkeypatch: pytest.MonkeyPatch, leaving: float
) -> None:
    monkeypatch.setattr(module, "LEAVING", leaving)

    async def main() -> None:
        async with Subject(command=fake("once")) as subject:
            assert subject.is_one_shot
            await own(subject)
            await subject.settle()
        async with Subject(command=fake("once-dying")) as subject:
            await own(subject)
            with pytest.raises(Failed, match="ended by SIGKILL"):
                await subject.settle()
        async with Subject(command=fake("once-panicking")) as subject:
            await own(subject)
            with pytest.raises(Failed, match="ended with status 1, and reports: thread 'main' panicked at"):
                await subject.settle()

    run_async(main)


@pytest.mark.parametrize("leaving", [0.0, 10.0])
def test_one_that_makes_its_socket_anew_for_each_front_end_is_waited_for(
    run_async: Run, monkeypatch: pytest.MonkeyPatch, leaving: float
) -> None:
    monkeypatch.setattr(module, "LEAVING", leaving)

    async def main() -> None:
        async with Subject(command=fake("renewing")) as subject:
            assert not subject.is_one_shot
            for _ in range(50):  # whoever came to the old socket would be turned away
                frontend = await subject.connect()
                assert (await frontend.call(GET_FEATURES, Empty())).value == FEATURES
                frontend.close()
            await subject.settle()

    run_async(main)


def test_one_that_no_more_ends_with_its_front_end_has_failed(run_async: Run) -> None:
    async def main() -> None:
        async with Subject(command=fake("once")) as subject:
            assert subject.program is not None
            frontend = await subject.connect()
            subject.program.patience = SHORT
            with pytest.raises(Failed, match="did not end when its front-end had gone"):
                await subject.settle()
            frontend.close()

    run_async(main)


def test_what_was_started_has_gone_when_the_block_ends(run_async: Run) -> None:
    async def main() -> None:
        async with Subject(command=fake("sound")) as subject:
            assert subject.program is not None
            folder = subject.program.folder
            assert folder.exists()
        assert not folder.exists()

    run_async(main)


def test_a_reply_that_is_none_is_no_fault_of_ours(run_async: Run, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        async def main() -> None:
            loop = asyncio.get_running_loop()
            entering = asyncio.create_task(Subject(socket=path).__aenter__())
            listener.setblocking(False)
            connection, _ = await loop.sock_accept(listener)
            with connection:
                await loop.sock_sendall(connection, b"\xff" * 12)
                with pytest.raises(SetupError, match="serves no front-end: request"):
                    await entering

        run_async(main)
