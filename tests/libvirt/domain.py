"""A domain of libvirt's, with or without a guest in it that the tests' agent runs in."""

import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self
from xml.sax.saxutils import escape, quoteattr

from tests.guest import initramfs, kernel
from tests.guest.jsonlines import AGENT_PORT, Disconnected, JsonLines
from tests.guest.machine import QEMU, kernel_command_line
from tests.guest.screen import SCREEN_TIMEOUT, Picture
from tests.libvirt.host import HostProblem, Process
from tests.libvirt.libvirtd import Libvirtd

BOOT_TIMEOUT = 120.0
CALL_TIMEOUT = 20.0
GRACE = 15.0  # on top of the agent's own deadline, so that its explanation arrives

# With no <acceleration> of its own, libvirt 11.3 writes one that it cannot read when it is started again.
VIDEO = """
<video>
  <driver name='vhostuser'/><model type='virtio'><acceleration accel2d='no'/></model>
</video>
"""
SHARED_MEMORY = "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>"
QEMU_SCHEMA = "http://libvirt.org/schemas/domain/qemu/1.0"
STATE = "/run/libvirt/qemu"


def document(
    name: str,
    devices: str,
    *,
    backing: str = SHARED_MEMORY,
    options: Sequence[str] = (),
    system: str = "",
    mebibytes: int = 64,
) -> str:
    """The domain's XML: `devices`, `system` (what it boots) and `backing` are XML; `options` are QEMU's."""
    arguments = "".join(f"<qemu:arg value={quoteattr(option)}/>" for option in options)
    return f"""
<domain type='qemu' xmlns:qemu='{QEMU_SCHEMA}'>
  <name>{name}</name>
  <memory unit='MiB'>{mebibytes}</memory>
  {backing}
  <os><type arch='x86_64' machine='q35'>hvm</type>{system}</os>
  <features><acpi/><apic/></features>
  <cpu mode='custom' match='exact' check='none'>
    <model>Nehalem</model><feature policy='require' name='rdrand'/>
  </cpu>
  <devices>
    <emulator>/usr/bin/{QEMU}</emulator>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
    {devices}
  </devices>
  <qemu:commandline>{arguments}</qemu:commandline>
</domain>
"""


class Domain:
    """A domain from `virsh create` to `close`, or the end of `with`."""

    def __init__(self, libvirtd: Libvirtd, name: str, xml: str, *, paused: bool = False) -> None:
        self.name = name
        self._libvirtd = libvirtd
        self._host = libvirtd.host
        file = f"/run/{name}.xml"
        self._host.path(file).write_text(xml)
        libvirtd.virsh("create", file, *(["--paused"] if paused else []))
        self._id = int(self.virsh("domid"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Destroys it if it is there."""
        with suppress(HostProblem):
            self.virsh("destroy")

    def virsh(self, command: str, *arguments: str) -> str:
        """A command of virsh about this domain; what it prints. Raises HostProblem."""
        return self._libvirtd.virsh(command, self.name, *arguments)

    @property
    def state(self) -> str:
        """What libvirt says of it: running, paused, ..."""
        return self.virsh("domstate")

    @property
    def qemu(self) -> Process:
        """QEMU's process."""
        return self._host.process(f"{STATE}/{self.name}.pid")

    @property
    def pid_file(self) -> str:
        """Where libvirt keeps the process id of the first display's program."""
        return f"{STATE}/{self._id}-{self.name}-video0-vhost-user-gpu.pid"

    @property
    def program(self) -> Process:
        """The first display's program."""
        return self._host.process(self.pid_file)

    def left(self) -> list[str]:
        """The files that libvirt keeps of it while it runs."""
        return [path.name for path in self._host.path(STATE).iterdir() if self.name in path.name]

    def qemu_log(self) -> str:
        """What libvirt and QEMU have written of it."""
        return self._host.path(f"/var/log/libvirt/qemu/{self.name}.log").read_text()


class GuestDomain(Domain):
    """A domain with a Linux guest in which the agent runs."""

    def __init__(
        self, libvirtd: Libvirtd, name: str, devices: str, backing: str, options: Sequence[str] = ()
    ) -> None:
        host = libvirtd.host
        self._console = f"/var/log/libvirt/qemu/{name}.console"
        with socket.socket(socket.AF_UNIX) as listener:
            path = f"/run/{name}.agent"
            listener.bind(str(host.path(path)))
            host.path(path).chmod(0o666)
            listener.listen()
            everything = devices + agent_devices(path, self._console)
            system = boot_elements()
            super().__init__(
                libvirtd,
                name,
                document(name, everything, backing=backing, system=system, options=options, mebibytes=512),
            )
            listener.settimeout(GRACE)
            self._agent = JsonLines(listener.accept()[0])
        try:
            self.wait_ready()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ends it at once."""
        self._agent.close()
        super().close()

    def wait_ready(self) -> None:
        """Waits until the guest has booted."""
        try:
            while "ready" not in self._agent.receive(time.monotonic() + BOOT_TIMEOUT):
                pass
        except (TimeoutError, Disconnected) as error:
            console = self._host.path(self._console).read_text(errors="replace")
            raise AssertionError(f"{self.name} is not ready: {console}\n{self.qemu_log()}") from error

    def call(self, command: str, *, timeout: float = CALL_TIMEOUT, **arguments: Any) -> Any:
        """Runs one of the agent's commands and returns its result."""
        deadline = time.monotonic() + timeout + GRACE
        self._agent.send({"call": command, "arguments": arguments, "timeout": timeout}, deadline)
        answer = self._agent.receive(deadline)
        assert "error" not in answer, f"{command}: {answer['error']}"
        return answer["result"]

    def power_off(self) -> None:
        """Lets the guest power itself off; whether its agent still answers to that is left open."""
        argv = [str(initramfs.BUSYBOX), "poweroff", "-f"]
        request = {"call": "start", "arguments": {"argv": argv}, "timeout": CALL_TIMEOUT}
        self._agent.send(request, time.monotonic() + GRACE)

    def picture(self) -> Picture:
        """What `virsh screenshot` shows."""
        file = f"/run/{self.name}.picture"
        self.virsh("screenshot", file)
        with self._host.path(file).open("rb") as shown:
            return Picture.load(shown)

    def wait_picture(self, expected: Picture) -> None:
        """Returns when `virsh screenshot` shows exactly this; nobody tells when."""
        expected.wait_for(self.picture, self.name, SCREEN_TIMEOUT)


def boot_elements() -> str:
    """The guest's kernel, in the domain's <os>."""
    return (
        f"<kernel>{kernel.boot_image()}</kernel><initrd>{initramfs.initramfs()}</initrd>"
        f"<cmdline>{escape(kernel_command_line())}</cmdline>"
    )


def agent_devices(path: str, console: str) -> str:
    """What the agent needs: a port to the socket at `path`, the host's files; and a console for messages."""
    return f"""
    <channel type='unix'>
      <source mode='connect' path='{path}'/><target type='virtio' name='{AGENT_PORT}'/>
    </channel>
    <filesystem type='mount' accessmode='passthrough' multidevs='remap'>
      <source dir='/'/><target dir='host'/><readonly/>
    </filesystem>
    <serial type='file'><source path='{console}'/></serial>
    """
