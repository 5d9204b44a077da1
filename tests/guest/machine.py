"""QEMU's command line for the guest: a machine that boots fast."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.guest import initramfs, kernel
from tests.guest.jsonlines import AGENT_PORT

QEMU = "qemu-system-x86_64"
CHECKOUT = Path(__file__).parents[2]
INFLIGHT_MIGRATION = "inflight-migration"  # a property of disks from QEMU 11.1 on
HOTPLUG_PORTS = ("port0", "port1", "port2", "port3")
FILES_PORT = HOTPLUG_PORTS[-1]  # of the host's files, in a guest that sleeps
# Some of Linux' drivers cannot set their device up again after a suspend to RAM. With this property, which
# QEMU has for devices in PCI Express slots, a device is not reset then.
KEPT_ASLEEP = "x-pcie-pm-no-soft-reset=on"

# No hardware that nobody tests: each device takes time to probe, and the guest's input devices
# shall be the tested ones only.
MACHINE = "q35,sata=off,smbus=off,i8042=off,vmport=off,graphics=off"

# What the kernel may leave out or believe without checking. `panic=-1` makes a panic end QEMU.
KERNEL_OPTIONS = (
    "console=ttyS0 quiet panic=-1 mitigations=off nokaslr no_timer_check audit=0 apparmor=0 "
    "cryptomgr.notests=1 rcupdate.rcu_expedited=1 random.trust_cpu=1 tsc=reliable nowatchdog rodata=off"
)


def qemu_command(
    *,
    agent: int,
    qmp: int,
    log: Path,
    memory: str,
    display: str,
    options: Sequence[str],
    own_memory: bool,
    sleeps: bool,
) -> list[str]:
    """The command that runs the guest; `agent` and `qmp` are connected sockets it inherits.

    Its memory is shared, or, without `own_memory`, for somebody else to make. One that `sleeps` keeps the
    host's files over a suspend to RAM.

    Raises KernelMissing, FileNotFoundError (no busybox).
    """
    return [
        *(QEMU, "-machine", MACHINE, *accelerator_options(), "-smp", "1", "-m", memory),
        *(shared_memory(memory) if own_memory else ()),
        *("-nodefaults", "-display", display, "-serial", f"file:{log}"),
        *("-chardev", f"socket,id=qmp,fd={qmp}", "-mon", "chardev=qmp,mode=control"),
        # A reboot that no test asked for (a panic) ends QEMU: see Guest.reboot.
        *("-action", "reboot=shutdown"),
        *("-kernel", str(kernel.boot_image()), "-initrd", str(initramfs.initramfs())),
        *("-append", kernel_command_line()),
        *agent_options(agent),
        *(option for port in HOTPLUG_PORTS for option in ("-device", root_port(port))),
        *host_files_options(f",bus={FILES_PORT},{KEPT_ASLEEP}" if sleeps else ""),
        *options,
    ]


def disk_has(name: str) -> bool:
    """Whether this QEMU's vhost-user disks have a property."""
    command = [QEMU, "-device", "vhost-user-blk-pci,help"]
    return name in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def shared_memory(size: str) -> list[str]:
    """Memory that programs can share."""
    backend = f"memory-backend-memfd,id=memory,size={size},share=on"
    return ["-object", backend, "-machine", "memory-backend=memory"]


def accelerator_options() -> list[str]:
    """KVM where the processor has it, emulation elsewhere; $VHOSTD_ACCEL (kvm, tcg) overrides.

    /dev/kvm alone proves nothing: some hosts have the node but cannot run an ordinary kernel with it.
    """
    choice = os.environ.get("VHOSTD_ACCEL") or ("kvm" if kvm_usable() else "tcg")
    if choice == "kvm":
        return ["-accel", "kvm", "-accel", "tcg", "-cpu", "max"]
    # Nehalem: an old processor's kernel code paths are cheap to emulate. One thread for all processors: with
    # one each, QEMU 10 may end by an assertion (iotlb_to_section) when a machine with several is reset.
    return ["-accel", "tcg,thread=single", "-cpu", "Nehalem,+rdrand"]


def kvm_usable() -> bool:
    """Whether this user may use /dev/kvm and the processor has the extension behind it."""
    flags = Path("/proc/cpuinfo").read_text().split()
    return os.access("/dev/kvm", os.R_OK | os.W_OK) and ("vmx" in flags or "svm" in flags)


def kernel_command_line() -> str:
    """The kernel's options, and what the script `init` needs to know as environment variables."""
    return f'{KERNEL_OPTIONS} "agent_checkout={CHECKOUT}" "agent_python={sys.executable}"'


def agent_options(fd: int) -> list[str]:
    """The virtio-serial port between the agent and the socket `fd`."""
    return [
        *("-device", "virtio-serial-pci", "-chardev", f"socket,id=agent,fd={fd}"),
        *("-device", f"virtserialport,chardev=agent,name={AGENT_PORT}"),
    ]


def host_files_options(more: str) -> list[str]:
    """The host's root file system, read-only, over virtio-9p, whose device has `more` properties."""
    return [
        *("-fsdev", "local,id=host,path=/,readonly=on,security_model=none,multidevs=remap"),
        *("-device", f"virtio-9p-pci,fsdev=host,mount_tag=host{more}"),
    ]


def root_port(name: str) -> str:
    """A PCI Express slot that a device can be plugged into while the guest runs."""
    return f"pcie-root-port,id={name},chassis={HOTPLUG_PORTS.index(name) + 1}"


def vhost_user_options(device: str, socket_path: Path, identity: str) -> list[str]:
    """A vhost-user device whose back-end listens at `socket_path`; `device` may have properties."""
    return [
        *("-chardev", f"socket,id={identity}-chardev,path={socket_path}"),
        *("-device", f"{device},id={identity},chardev={identity}-chardev"),
    ]
