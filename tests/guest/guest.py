"""A Linux guest under QEMU with an agent inside, driven from a test.

    with Guest("virtio-keyboard-pci,id=keyboard") as guest:
        guest.call("record", device="QEMU Virtio Keyboard")
        guest.qmp.execute("send-key", {"keys": [{"type": "qcode", "data": "a"}]})
        guest.call("wait_events", device="QEMU Virtio Keyboard", count=4)

The commands for `call` are the methods named in the tables of agent.py and of the files agent_*.py. A
guest needs what contrib/setup.sh installs.
"""

import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.guest.jsonlines import Disconnected, JsonLines
from tests.guest.machine import HOTPLUG_PORTS, qemu_command
from tests.guest.qmp import Qmp, QmpError

BOOT_TIMEOUT = 120.0
CALL_TIMEOUT = 20.0
UNPLUG_TIMEOUT = 30.0
SLEEP_TIMEOUT = 30.0
QUIT_TIMEOUT = 5.0
# On top of the agent's own deadline, so that its explanation arrives.
GRACE = 15.0
LOG_TAIL_LINES = 100


class GuestProblem(Exception):
    """The guest did not boot, does not answer, or has ended; tells the end of its console's log."""


class CommandFailed(Exception):
    """The agent could not do what it was asked."""


class Guest:
    """One virtual machine, booted by `start` or `with`, gone after `close`.

    `devices` are arguments for -device; `options` are further QEMU options (see
    machine.vhost_user_options); the processes' inherited descriptors are named in `pass_fds`.
    `display` is the argument for -display. `launcher` is a command that starts QEMU, and gives it the memory.
    One that `sleeps` may be suspended to RAM.
    """

    def __init__(
        self,
        *devices: str,
        options: Sequence[str] = (),
        pass_fds: Sequence[int] = (),
        memory: str = "512M",
        display: str = "none",
        launcher: Sequence[str] = (),
        sleeps: bool = False,
    ) -> None:
        self.boot_seconds = 0.0
        self._options = [*options, *(option for device in devices for option in ("-device", device))]
        self._pass_fds = list(pass_fds)
        self._memory = memory
        self._display = display
        self._launcher = launcher
        self._sleeps = sleeps
        self._plugged: dict[str, str] = {}  # device id -> root port
        self._cleanup = ExitStack()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self, timeout: float = BOOT_TIMEOUT) -> None:
        """Boots the guest and returns when the agent answers; nothing is left behind on failure.

        Raises GuestProblem, KernelMissing, FileNotFoundError (no QEMU, no busybox).
        """
        begin = time.monotonic()
        self._directory = Path(
            self._cleanup.enter_context(tempfile.TemporaryDirectory(prefix="vhostd-guest-"))
        )
        try:
            self._start_qemu()
            self._negotiate(timeout)
        except BaseException:
            self.close()
            raise
        self.boot_seconds = time.monotonic() - begin

    def call(self, command: str, *, timeout: float = CALL_TIMEOUT, **arguments: Any) -> Any:
        """Runs one of the agent's commands, which has `timeout` seconds, and returns its result.

        Raises CommandFailed, GuestProblem.
        """
        deadline = time.monotonic() + timeout + GRACE
        try:
            self._agent.send({"call": command, "arguments": arguments, "timeout": timeout}, deadline)
            answer = self._agent.receive(deadline)
        except TimeoutError:
            raise self._problem(f"no answer to {command} within {timeout + GRACE:.0f} s") from None
        except Disconnected:
            raise self._problem(f"QEMU ended during {command}") from None
        if "error" in answer:
            raise CommandFailed(f"{command}: {answer['error']}")
        return answer["result"]

    def plug(self, driver: str, identity: str, **properties: Any) -> None:
        """Hot-plugs a device into a free slot. Its driver may not be ready in the guest yet."""
        port = next(port for port in HOTPLUG_PORTS if port not in self._plugged.values())
        arguments = {"driver": driver, "id": identity, "bus": port, **properties}
        self.qmp.execute("device_add", arguments)
        self._plugged[identity] = port

    def plug_vhost_user(self, driver: str, identity: str, socket_path: Path, **properties: Any) -> None:
        """Hot-plugs a vhost-user device whose back-end listens at `socket_path`."""
        chardev = f"{identity}-chardev"
        address = {"type": "unix", "data": {"path": str(socket_path)}}
        backend = {"type": "socket", "data": {"addr": address, "server": False}}
        self.qmp.execute("chardev-add", {"id": chardev, "backend": backend})
        self.plug(driver, identity, chardev=chardev, **properties)

    def unplug(self, identity: str, timeout: float = UNPLUG_TIMEOUT) -> None:
        """Removes a device and returns when the guest has let it go (DEVICE_DELETED)."""
        self.qmp.forget_events()
        self.qmp.execute("device_del", {"id": identity})
        self.qmp.wait_event("DEVICE_DELETED", timeout, device=identity)
        self._plugged.pop(identity, None)

    def reboot(self, timeout: float = BOOT_TIMEOUT) -> None:
        """Lets the guest's kernel restart the machine; returns when the agent answers again."""
        self.qmp.execute("set-action", {"reboot": "reset"})
        self._agent.send({"call": "reboot"}, time.monotonic() + GRACE)
        self._await_agent(timeout)

    def reset(self, timeout: float = BOOT_TIMEOUT) -> None:
        """Presses the reset button, unknown to the kernel; returns when the agent answers again."""
        self.qmp.execute("set-action", {"reboot": "reset"})
        self.qmp.execute("system_reset")
        self._await_agent(timeout)

    def sleep(self, timeout: float = SLEEP_TIMEOUT) -> None:
        """Has the guest's kernel suspend the machine to RAM; returns when it sleeps."""
        self.qmp.forget_events()
        self.call("sleep")
        self.qmp.wait_event("SUSPEND", timeout)

    def wake(self) -> None:
        """Wakes a guest that sleeps; returns when the agent answers."""
        self.qmp.execute("system_wakeup")
        self.call("uptime")

    def close(self) -> None:
        """Ends QEMU, in an orderly way if it still obeys, and removes what it left; idempotent."""
        self._cleanup.close()

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        return self._process.pid

    def console(self) -> str:
        """The guest's console output so far."""
        return _text(self._directory / "console")

    def _start_qemu(self) -> None:
        agent, qemu_agent = socket.socketpair()
        qmp, qemu_qmp = socket.socketpair()
        self._agent = JsonLines(agent)
        self.qmp = Qmp(JsonLines(qmp))
        self._cleanup.callback(self._agent.close)
        self._cleanup.callback(self.qmp.close)
        with qemu_agent, qemu_qmp, open(self._directory / "qemu", "wb") as errors:
            inherited = [qemu_agent.fileno(), qemu_qmp.fileno()]
            command = qemu_command(
                agent=inherited[0],
                qmp=inherited[1],
                log=self._directory / "console",
                memory=self._memory,
                display=self._display,
                options=self._options,
                own_memory=not self._launcher,
                sleeps=self._sleeps,
            )
            self._process = subprocess.Popen(
                [*self._launcher, *command],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                pass_fds=[*inherited, *self._pass_fds],
            )
        self._cleanup.callback(self._stop_qemu)

    def _stop_qemu(self) -> None:
        """Lets QEMU stop its devices, then makes sure."""
        with suppress(Disconnected, TimeoutError, QmpError, subprocess.TimeoutExpired):
            self.qmp.execute("quit", timeout=QUIT_TIMEOUT)
            self._process.wait(QUIT_TIMEOUT)
        self._process.kill()
        self._process.wait()

    def _negotiate(self, timeout: float) -> None:
        try:
            self.qmp.negotiate()
        except (Disconnected, TimeoutError):
            raise self._problem("QEMU did not start") from None
        self._await_agent(timeout)

    def _await_agent(self, timeout: float) -> None:
        """Waits for a (re)started agent; from then on, a reboot that was not asked for ends QEMU."""
        deadline = time.monotonic() + timeout
        try:
            # Answers to requests before a reset may still be on the way.
            while "ready" not in self._agent.receive(deadline):
                pass
        except TimeoutError:
            raise self._problem(f"the guest was not ready within {timeout:.0f} s") from None
        except Disconnected:
            raise self._problem("the guest ended before it was ready") from None
        self.qmp.execute("set-action", {"reboot": "shutdown"})

    def _problem(self, what: str) -> GuestProblem:
        """An error that shows what QEMU and the guest said last."""
        qemu = _tail(_text(self._directory / "qemu"))
        return GuestProblem(f"{what}\n--- QEMU:\n{qemu}\n--- the guest's console:\n{_tail(self.console())}")


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def _tail(text: str) -> str:
    return "\n".join(text.splitlines()[-LOG_TAIL_LINES:])
