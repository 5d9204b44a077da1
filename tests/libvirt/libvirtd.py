"""A libvirtd of the tests' own, and virsh to talk to it."""

import errno
import os
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.libvirt.host import Host, Process, wait_until
from tests.libvirt.syslog import Syslog
from tests.programs import executable

CONFIG = """
auth_unix_rw = "none"
log_outputs = "2:file:/var/log/libvirt/libvirtd.log"
"""
# Else it starts virtlogd, which stays.
QEMU_CONFIG = """
stdio_handler = "file"
"""
DESCRIPTIONS = "/etc/qemu/vhost-user"
PID_FILE = "/run/libvirtd.pid"
CGROUPS = Path("/sys/fs/cgroup")


class Libvirtd:
    """Runs in a host of its own, which ends with it, and where our programs are installed."""

    def __init__(self) -> None:
        self._groups = machine_groups()
        self.host = Host()
        self.syslog = Syslog(self.host.path("/dev/log"))
        self.host.path("/etc/libvirt/libvirtd.conf").write_text(CONFIG)
        self.host.path("/etc/libvirt/qemu.conf").write_text(QEMU_CONFIG)
        self.host.run(executable("vhostctl"), "install")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.syslog.close()
        self.host.close()
        for group in machine_groups() - self._groups:
            remove_group(group)

    def start(self) -> None:
        """Returns when it can be asked."""
        self.host.run("libvirtd", "--daemon", "--config", "/etc/libvirt/libvirtd.conf")

    @property
    def process(self) -> Process:
        """The daemon."""
        return self.host.process(PID_FILE)

    def restart(self) -> None:
        """Ends it, without its domains, and starts it again."""
        before = self.process
        before.send()
        before.wait_gone()
        self.start()

    def virsh(self, *command: str | Path) -> str:
        """Runs a command of virsh; what it prints. Raises HostProblem."""
        return self.host.run("virsh", "--quiet", *command).decode().strip()


def machine_groups() -> set[Path]:
    """The control groups below which libvirt puts domains: the one thing that it does not have alone."""
    return {*CGROUPS.glob("machine"), *CGROUPS.glob("*/machine")}


def remove_group(group: Path) -> None:
    """Removes a control group and what is below, once their processes are gone."""
    for directory, _, _ in os.walk(group, topdown=False):
        wait_until(partial(removed, directory), f"the end of {directory}")


def removed(directory: str) -> bool:
    """Removes a control group if nobody is in it."""
    try:
        os.rmdir(directory)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True
