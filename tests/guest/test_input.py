"""vhost-user-input in a real guest: what Linux makes of the device, and every event that it gets."""

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from tests.guest.backend import Backend, EventSocket
from tests.guest.guest import CommandFailed, Guest
from tests.guest.machine import vhost_user_options
from tests.programs import listens_at
from vhost_user_input.description import VIRTUAL, Description
from vhost_user_input.evemu import parse
from vhost_user_input.event_socket import MAX_CLIENTS

pytestmark = pytest.mark.guest

RECORDINGS = Path(__file__).parents[1] / "devices" / "vhost_user_input" / "recordings"
KINDS = ("keyboard", "mouse", "tablet", "touchscreen")
EV_SYN, EV_KEY, EV_REL, EV_ABS, EV_LED, EV_REP = 0x00, 0x01, 0x02, 0x03, 0x11, 0x14
KEY_A, KEY_ENTER, LED_CAPSL = 30, 28, 1
KEYS = {"a": KEY_A, "b": 48}
SYN = [EV_SYN, 0, 0]
EVDEV_BUFFER = 64  # events that Linux keeps for a slow reader of a simple device
DRIVER = "/sys/bus/virtio/drivers/virtio_input"


class Machine:
    """A guest with one vhost-user-input program per kind of device."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.directory = directory
        self.backends = {
            kind: stack.enter_context(start_backend(directory, kind, "--serial", f"serial of {kind}"))
            for kind in KINDS
        }
        options = [
            option
            for kind, backend in self.backends.items()
            for option in vhost_user_options("vhost-user-input-pci", backend.path, kind)
        ]
        self.guest = stack.enter_context(Guest(options=options))

    def events(self, kind: str) -> EventSocket:
        """A new client of the kind's event socket."""
        return EventSocket(self.directory / f"{kind}.events")


def start_backend(directory: Path, kind: str, *options: str, text: str | None = None) -> Backend:
    """Starts a program for the device that a recording describes, without the recorded events."""
    whole = (RECORDINGS / f"{kind}.evemu").read_text() if text is None else text
    description = directory / f"{kind}.evemu"
    description.write_text("".join(line for line in whole.splitlines(True) if not line.startswith("E:")))
    sockets = [f"--evemu-path={description}", f"--event-socket={directory / f'{kind}.events'}"]
    return Backend("vhost-user-input", directory, *sockets, *options, name=kind)


def recorded(kind: str) -> tuple[Description, list[list[int]]]:
    """A recording's device and events."""
    path = RECORDINGS / f"{kind}.evemu"
    recording = parse(path.read_text(), str(path))
    return recording.description, [list(event[1:]) for event in recording.events]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with ExitStack() as stack:
        yield Machine(tmp_path_factory.mktemp("input"), stack)


def press_a(machine: Machine, device: str = "keyboard") -> None:
    """Types on a device's event socket and expects exactly that in the guest."""
    name = recorded("keyboard")[0].name
    machine.guest.call("wait_input_device", name=name)
    machine.guest.call("record", device=name)
    stroke = [[EV_KEY, KEY_A, 1], SYN, [EV_KEY, KEY_A, 0], SYN]
    with closing(machine.events(device)) as events:
        events.send(stroke)
        assert machine.guest.call("wait_events", device=name, count=len(stroke)) == stroke
    machine.guest.call("stop_recording", device=name)


@pytest.mark.parametrize("kind", KINDS)
def test_the_guest_sees_the_device_as_it_is_described(machine: Machine, kind: str) -> None:
    description, _ = recorded(kind)
    seen = machine.guest.call("input_device", device=description.name)
    assert seen["uniq"] == f"serial of {kind}"
    check_description(seen, description)


@pytest.mark.parametrize("kind", VIRTUAL)
def test_the_guest_sees_the_device_that_an_event_socket_alone_is(machine: Machine, kind: str) -> None:
    description, name = VIRTUAL[kind](), f"only-{kind}"
    options = [f"--event-socket={machine.directory / name}", f"--event-device={kind}"]
    with Backend("vhost-user-input", machine.directory, *options, name=name) as backend:
        machine.guest.plug_vhost_user("vhost-user-input-pci", name, backend.path)
        check_description(machine.guest.call("wait_input_device", name=description.name), description)
        remove(machine, name, description.name)


def remove(machine: Machine, identity: str, name: str) -> None:
    """Unplugs a device and forgets its socket."""
    machine.guest.unplug(identity)
    machine.guest.qmp.execute("chardev-remove", {"id": f"{identity}-chardev"})
    machine.guest.call("wait_input_device", name=name, present=False)


def check_description(seen: dict[str, Any], description: Description) -> None:
    """Whether what the guest sees is as described."""
    assert [seen[each] for each in ("bustype", "vendor", "product", "version")] == list(description.ids)
    assert set(seen["properties"]) == description.properties
    assert set(seen["events"][EV_SYN]) == set(description.codes) | {EV_SYN}
    for type_, codes in description.codes.items():
        if type_ not in (EV_SYN, EV_REP):  # which have no bitmaps of codes in Linux
            assert set(seen["events"][type_]) == codes
    assert seen["absinfo"].keys() == description.axes.keys()
    for axis, info in description.axes.items():
        got = seen["absinfo"][axis]
        assert (got["min"], got["max"], got["fuzz"], got["flat"], got["resolution"]) == (
            info.minimum,
            info.maximum,
            info.fuzz,
            info.flat,
            info.resolution,
        )


@pytest.mark.parametrize("kind", KINDS)
def test_a_recording_arrives_event_by_event(machine: Machine, kind: str) -> None:
    description, events = recorded(kind)
    machine.guest.call("record", device=description.name)
    received: list[list[int]] = []
    with closing(machine.events(kind)) as socket:
        for chunk in chunks_of_reports(events, EVDEV_BUFFER - 1):
            socket.send(chunk)
            received += machine.guest.call("wait_events", device=description.name, count=len(chunk))
    assert received == events
    assert machine.guest.call("stop_recording", device=description.name) == []


def chunks_of_reports(events: list[list[int]], most: int) -> Iterator[list[list[int]]]:
    """Whole reports, as many at a time as have at most so many events."""
    chunk: list[list[int]] = []
    report: list[list[int]] = []
    for event in events:
        report.append(event)
        if event == SYN:
            if len(chunk) + len(report) > most:
                yield chunk
                chunk = []
            chunk += report
            report = []
    yield chunk


def test_an_led_set_in_the_guest_arrives_at_the_source(machine: Machine) -> None:
    name = recorded("keyboard")[0].name
    with closing(machine.events("keyboard")) as socket:
        press_a(machine)  # so that the client is being served
        for value in (1, 0):
            machine.guest.call("write_events", device=name, events=[[EV_LED, LED_CAPSL, value], SYN])
            assert socket.receive() == [EV_LED, LED_CAPSL, value]
            assert socket.receive() == SYN


def test_what_a_client_leaves_pressed_is_released(machine: Machine) -> None:
    """A guest would repeat the key for ever."""
    name = recorded("keyboard")[0].name
    machine.guest.call("record", device=name)
    with closing(machine.events("keyboard")) as socket:
        socket.send([[EV_KEY, KEY_A, 1], SYN])
        machine.guest.call("wait_event", device=name, event=[EV_KEY, KEY_A, 1])
    machine.guest.call("wait_event", device=name, event=[EV_KEY, KEY_A, 0])
    machine.guest.call("stop_recording", device=name)
    assert machine.guest.call("input_state", device=name)["keys"] == []


def test_what_a_client_leaves_on_the_screen_is_lifted(machine: Machine) -> None:
    name = recorded("touchscreen")[0].name
    contacts = [[EV_ABS, 0x2F, 3], [EV_ABS, 0x39, 77], [EV_KEY, 0x14A, 1], SYN]
    machine.guest.call("record", device=name)
    with closing(machine.events("touchscreen")) as socket:
        socket.send(contacts)
        machine.guest.call("wait_event", device=name, event=[EV_ABS, 0x39, 77])
    received = machine.guest.call("wait_event", device=name, event=[EV_ABS, 0x39, -1])
    assert [EV_KEY, 0x14A, 0] in received + machine.guest.call("stop_recording", device=name)


def test_what_clients_said_while_the_guest_paused_is_said_when_it_goes_on(machine: Machine) -> None:
    """By more of them than may be there at a time, all of which have gone."""
    name = recorded("touchscreen")[0].name  # whose readers Linux gives a long buffer
    moves = [[EV_ABS, 0, 1000 + number] for number in range(MAX_CLIENTS + 10)]
    machine.guest.call("record", device=name)
    machine.guest.qmp.execute("stop")
    for move in moves:
        with closing(machine.events("touchscreen")) as socket:
            socket.send([move, SYN])
    machine.guest.qmp.execute("cont")
    received = machine.guest.call("wait_event", device=name, event=moves[-1])
    assert [event for event in received if event != SYN] == moves
    machine.guest.call("stop_recording", device=name)


def test_what_was_typed_before_the_guest_takes_events_is_typed(machine: Machine) -> None:
    """Key by key, by more clients than may be there at a time, all of which have gone."""
    console = machine.guest.call("start", argv=["sh", "-c", "exec </dev/tty1; echo ready; exec cat"])
    machine.guest.call("wait_output", pid=console, text="ready")
    events = machine.directory / "early.events"
    with Backend("vhost-user-input", machine.directory, f"--event-socket={events}", name="early") as backend:
        while backend.process.poll() is None and not listens_at(events):
            time.sleep(0.01)
        text = "ab" * (MAX_CLIENTS // 2 + 5)
        for key in [*(KEYS[letter] for letter in text), KEY_ENTER]:
            with closing(EventSocket(events)) as socket:
                socket.send([[EV_KEY, key, 1], SYN, [EV_KEY, key, 0], SYN])
        machine.guest.plug_vhost_user("vhost-user-input-pci", "early", backend.path)
        machine.guest.call("wait_output", pid=console, text=text)
        remove(machine, "early", "vhostd virtual keyboard")
    machine.guest.call("signal", pid=console)
    machine.guest.call("finish", pid=console)


def test_ten_thousand_events_at_full_speed(tmp_path: Path) -> None:
    """None is torn, lost or out of order.

    The device has many contacts, for which Linux gives the reader a buffer that can hold all of them.
    """
    events: list[list[int]] = []
    for number in range(2500):
        moves = [[EV_REL, 0, number % 100 + 1], [EV_REL, 1, -(number % 50) - 1]]
        events += [*moves, [EV_KEY, 0x110, (number + 1) % 2], SYN]
    with start_backend(tmp_path, "wide", text=wide_device()) as backend:
        options = vhost_user_options("vhost-user-input-pci", backend.path, "wide")
        with Guest(options=options) as guest, closing(EventSocket(tmp_path / "wide.events")) as socket:
            guest.call("record", device="wide")
            begin = time.monotonic()
            socket.send(events)
            received = guest.call("wait_events", device="wide", count=len(events), timeout=60)
            seconds = time.monotonic() - begin
    assert received == events
    print(f"{len(events) / seconds:.0f} events per second")


def wide_device() -> str:
    """A mouse that is also a touch screen for 128 contacts."""
    mt_axes = [0x30, 0x31, 0x32, 0x33, 0x34, 0x35, 0x36, 0x38, 0x3A, 0x3B, 0x3C, 0x3D]
    axes = {0x2F: (0, 127), 0x39: (0, 65535)} | dict.fromkeys(mt_axes, (0, 255))
    bitmap = sum(1 << axis for axis in axes).to_bytes(8, "little").hex(" ")
    lines = [
        "N: wide",
        "I: 0006 0001 0002 0003",
        *("B: 01 00 00 00 00 00 00 00 00" for _ in range(4)),
        "B: 01 00 00 01 00 00 00 00 00",
        "B: 02 03 00 00 00 00 00 00 00",
        f"B: 03 {bitmap}",
        *(f"A: {axis:02x} {low} {high} 0 0 0" for axis, (low, high) in axes.items()),
    ]
    return "\n".join(lines) + "\n"


def test_a_replay_keeps_its_timing(tmp_path: Path) -> None:
    whole = (RECORDINGS / "keyboard.evemu").read_text()
    head = "".join(line for line in whole.splitlines(True) if not line.startswith("E:"))
    stroke = ["0001 001e 1", "0000 0000 0", "0001 001e 0", "0000 0000 0"]
    first = "".join(f"E: 0.000001 {event}\n" for event in stroke)
    later = first.replace("0.000001", "8.000001").replace("001e", "0030")
    file = tmp_path / "replay.evemu"
    file.write_text(head + first + later)
    with Backend("vhost-user-input", tmp_path, f"--evemu-path={file}") as backend:
        options = vhost_user_options("vhost-user-input-pci", backend.path, "replay")
        begin = time.monotonic()
        with Guest(options=options) as guest:
            name = recorded("keyboard")[0].name
            guest.call("record", device=name)
            received = guest.call("wait_event", device=name, event=[EV_KEY, 0x30, 0])
            assert time.monotonic() - begin > 8
            at = received.index([EV_KEY, 0x30, 1])
            assert received[at : at + 3] == [[EV_KEY, 0x30, 1], SYN, [EV_KEY, 0x30, 0]]


def test_the_driver_may_be_unbound_and_bound(machine: Machine) -> None:
    again = f"cd {DRIVER} && for device in virtio*; do echo $device > unbind; echo $device > bind; done"
    assert machine.guest.call("run", argv=["sh", "-c", again]) == {"status": 0, "output": ""}
    press_a(machine)


def test_the_guest_may_stop_and_go_on(machine: Machine) -> None:
    machine.guest.qmp.execute("stop")
    machine.guest.qmp.execute("cont")
    press_a(machine)


@pytest.mark.parametrize("restart", [Guest.reboot, Guest.reset])
def test_the_guest_may_restart(machine: Machine, restart: Any) -> None:
    processes = {kind: backend.process.pid for kind, backend in machine.backends.items()}
    restart(machine.guest)
    press_a(machine)
    assert processes == {kind: backend.process.pid for kind, backend in machine.backends.items()}
    assert all(backend.process.poll() is None for backend in machine.backends.values())


def test_the_device_may_be_removed_and_added_again(machine: Machine) -> None:
    text = (RECORDINGS / "keyboard.evemu").read_text().replace("AT Translated Set 2 keyboard", "plugged")
    with start_backend(machine.directory, "plugged", text=text) as backend:
        for _ in range(3):
            machine.guest.plug_vhost_user("vhost-user-input-pci", "plugged", backend.path)
            seen = machine.guest.call("wait_input_device", name="plugged # laptop")
            machine.guest.call("record", device=seen["path"])
            with closing(machine.events("plugged")) as events:
                events.send([[EV_KEY, KEY_A, 1], SYN, [EV_KEY, KEY_A, 0], SYN])
                assert len(machine.guest.call("wait_events", device=seen["path"], count=4)) == 4
            machine.guest.call("stop_recording", device=seen["path"])
            remove(machine, "plugged", "plugged # laptop")


def test_an_evdev_node(machine: Machine) -> None:
    """The evdev path needs a real node, and a kernel that makes one: it is tested inside the guest."""
    script = Path(__file__).parent / "inside" / "check_evdev.py"
    command = ["-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", str(script)]
    try:
        result = machine.guest.call("run", argv=[sys.executable, *command], timeout=900)
    except CommandFailed as error:
        pytest.fail(str(error))
    print(result["output"])
    assert result["status"] == 0, result["output"]
    assert " passed" in result["output"]


def test_nothing_stays_pressed_when_the_program_ends(machine: Machine) -> None:
    """Not even what a client goes on holding."""
    text = (RECORDINGS / "keyboard.evemu").read_text().replace("AT Translated Set 2 keyboard", "ending")
    name = "ending # laptop"
    with start_backend(machine.directory, "ending", text=text) as backend:
        machine.guest.plug_vhost_user("vhost-user-input-pci", "ending", backend.path)
        machine.guest.call("wait_input_device", name=name)
        machine.guest.call("record", device=name)
        with closing(machine.events("ending")) as socket:
            socket.send([[EV_KEY, KEY_A, 1], SYN])
            machine.guest.call("wait_event", device=name, event=[EV_KEY, KEY_A, 1])
            backend.process.terminate()
            backend.process.wait()
            machine.guest.call("wait_event", device=name, event=[EV_KEY, KEY_A, 0])
        assert machine.guest.call("input_state", device=name)["keys"] == []
