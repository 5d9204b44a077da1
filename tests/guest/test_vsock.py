"""vhost-user-vsock in a real guest: sockets of Linux, and what people use them with."""

import hashlib
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from tests.guest.backend import Backend
from tests.guest.guest import Guest
from tests.guest.inside.vsock import (
    DIGEST,
    ECHO,
    MESSAGES,
    SILENT,
    SOURCE,
    read_all,
    read_exactly,
    some_bytes,
)
from tests.guest.machine import CHECKOUT, vhost_user_options
from tests.guest.modules import load_modules

pytestmark = pytest.mark.guest

CID = 42
PORT = 7000  # of servers on the host
MODULE = "vmw_vsock_virtio_transport"
INSIDE = (sys.executable, "-m", "tests.guest.inside.vsock")
MANY = 200
PATIENCE = 60.0  # seconds for what takes one


class Machine:
    """A guest with servers inside, and the host beside it."""

    def __init__(self, guest: Guest, backend: Backend, folder: Path) -> None:
        self.guest, self.backend, self.folder = guest, backend, folder
        self.path = folder / "vm"

    def prepare(self) -> None:
        """Starts the guest's servers, after each boot."""
        load_modules(self.guest, self.folder / "modules", MODULE)
        pid = self.guest.call("start", argv=self.inside("serve"))
        self.guest.call("wait_output", pid=pid, text="serving")

    def inside(self, *words: object) -> list[str]:
        """The command line of the program inside."""
        return ["env", "-C", str(CHECKOUT), *INSIDE, *map(str, words)]

    def run(self, *words: object) -> str:
        """What the program inside prints."""
        done = self.guest.call("run", argv=self.inside(*words), timeout=PATIENCE)
        assert done["status"] == 0, done["output"]
        return str(done["output"]).strip()

    def client(self, port: int, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """A client of the host that is connected to a port of the guest; raises ConnectionRefusedError."""
        sock = socket.socket(socket.AF_UNIX, kind)
        sock.settimeout(PATIENCE)
        sock.connect(f"{self.path}{'_seqpacket' if kind == socket.SOCK_SEQPACKET else ''}")
        sock.send(b"CONNECT %d\n" % port)
        answer = b""
        while not answer.endswith(b"\n"):
            part = sock.recv(1 if kind == socket.SOCK_STREAM else 64)
            if not part:
                sock.close()
                raise ConnectionRefusedError
            answer += part
        assert answer.startswith(b"OK "), answer
        return sock


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    folder = tmp_path_factory.mktemp("vsock")
    options = (f"--guest-cid={CID}", f"--uds-path={folder / 'vm'}")
    with (
        Backend("vhost-user-vsock", folder, *options) as backend,
        Guest(options=vhost_user_options("vhost-user-vsock-pci", backend.path, "vsock")) as guest,
    ):
        machine = Machine(guest, backend, folder)
        machine.prepare()
        yield machine


@pytest.fixture
def serve(machine: Machine) -> Iterator[Callable[..., None]]:
    """Starts a server of the host, each of whose clients gets a thread."""
    listeners = []

    def serve(port: int, handler: Callable[[socket.socket], None], kind: int = socket.SOCK_STREAM) -> None:
        path = Path(f"{machine.path}_{port}")
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, kind)
        listener.bind(str(path))
        listener.listen(256)
        listeners.append(listener)
        threads.append(threading.Thread(target=accept, args=(listener, handler)))
        threads[-1].start()

    def accept(listener: socket.socket, handler: Callable[[socket.socket], None]) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=serve_one, args=(client, handler)))
            threads[-1].start()

    def serve_one(client: socket.socket, handler: Callable[[socket.socket], None]) -> None:
        with client:
            client.settimeout(PATIENCE)
            handler(client)

    threads: list[threading.Thread] = []
    yield serve
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
    for thread in threads:
        thread.join()


def echo(client: socket.socket) -> None:
    while part := client.recv(1 << 16):
        client.sendall(part)


def echo_messages(client: socket.socket) -> None:
    while part := client.recv(1 << 18):
        client.send(part)


def digest(client: socket.socket) -> None:
    client.sendall(hashlib.sha256(read_all(client)).hexdigest().encode())


def digest_messages(client: socket.socket) -> None:
    data = b"".join(iter(lambda: client.recv(1 << 18), b""))
    client.send(hashlib.sha256(data).hexdigest().encode())


def test_data_of_every_size_come_back(machine: Machine) -> None:
    with closing(machine.client(ECHO)) as client:
        for size in (1, 2, 43, 44, 45, 3647, 3648, 4051, 4052, 4096, 65535, 65536, 65537, 200_000):
            data = some_bytes(size)
            threading.Thread(target=client.sendall, args=(data,)).start()
            assert read_exactly(client, size) == data


def test_much_data_pass_to_the_guest_and_from_it(machine: Machine) -> None:
    size = 8 << 20
    with closing(machine.client(DIGEST)) as client:
        client.sendall(some_bytes(size))
        client.shutdown(socket.SHUT_WR)
        assert read_all(client).decode() == hashlib.sha256(some_bytes(size)).hexdigest()
    with closing(machine.client(SOURCE)) as client:
        client.sendall(b"%d\n" % size)
        assert read_all(client) == some_bytes(size)


def test_two_hundred_connections_at_once(machine: Machine) -> None:
    size = 10_000
    clients = [machine.client(ECHO) for _ in range(MANY)]
    try:
        for client in clients:
            client.sendall(some_bytes(size))
        for client in clients:
            assert read_exactly(client, size) == some_bytes(size)
    finally:
        for client in clients:
            client.close()


def test_two_hundred_connections_of_the_guest(machine: Machine, serve: Callable[..., None]) -> None:
    serve(PORT, echo)
    assert machine.run("connect", PORT, MANY, 5000) == f"{MANY} of {MANY}"


def test_a_guest_says_that_it_sends_no_more(machine: Machine, serve: Callable[..., None]) -> None:
    serve(PORT, digest)
    assert machine.run("half", PORT, 300_000) == "True"


@pytest.mark.parametrize("buffer", [1 << 17, 1 << 16])
def test_a_guest_s_socket_that_keeps_little_sends_on(
    machine: Machine, serve: Callable[..., None], buffer: int
) -> None:
    serve(PORT, digest)
    assert machine.run("half", PORT, 1 << 20, buffer) == "True"


def test_a_long_message_after_another(machine: Machine, serve: Callable[..., None]) -> None:
    serve(PORT, digest_messages, socket.SOCK_SEQPACKET)
    assert machine.run("pour", PORT, 100_000, 200_000, 150_000) == "True"


def test_messages_keep_their_bounds(machine: Machine, serve: Callable[..., None]) -> None:
    sizes = [1, 44, 3600, 4096, 65536, 65537, 150_000]
    serve(PORT, echo_messages, socket.SOCK_SEQPACKET)
    assert machine.run("messages", PORT, *sizes).splitlines() == [f"{size} True" for size in sizes]
    with closing(machine.client(MESSAGES, socket.SOCK_SEQPACKET)) as client:
        for size in sizes:
            client.send(some_bytes(size))
        for size in sizes:
            assert client.recv(1 << 18) == some_bytes(size)


def test_nobody_is_there(machine: Machine) -> None:
    assert machine.run("refused", 2, 7777) == "ConnectionResetError"
    with pytest.raises(ConnectionRefusedError):
        machine.client(7777)


def test_a_client_that_vanishes_costs_nothing(machine: Machine) -> None:
    for _ in range(20):
        with closing(machine.client(SILENT)) as client:
            client.setblocking(False)
            with suppress(BlockingIOError):
                while True:
                    client.send(bytes(1 << 16))
    with closing(machine.client(ECHO)) as client:
        client.sendall(b"still there")
        assert read_exactly(client, 11) == b"still there"


def test_socat_reaches_the_guest(machine: Machine) -> None:
    command = f"printf 'CONNECT {ECHO}\\nhello\\n' | socat -t 5 - UNIX-CONNECT:{machine.path}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout.splitlines()[1:] == ["hello"], done


def test_af_vsock_on_the_side_of_the_host(machine: Machine) -> None:
    """The guest is the host here: it has the kernel's loopback, which this machine may lack."""
    load_modules(machine.guest, machine.folder / "modules", "vsock_loopback")
    argv = ["env", "-C", str(CHECKOUT), sys.executable, "-m", "tests.guest.inside.forwarding"]
    done = machine.guest.call("run", argv=argv, timeout=2 * PATIENCE)
    assert done["status"] == 0, done["output"]
    assert "all is well" in done["output"]


def test_the_guest_reboots(machine: Machine) -> None:
    with closing(machine.client(ECHO)) as client:
        machine.guest.reboot()
        assert client.recv(1) == b""
    machine.prepare()
    with closing(machine.client(ECHO)) as client:
        client.sendall(b"again")
        assert read_exactly(client, 5) == b"again"
