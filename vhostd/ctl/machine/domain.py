"""A machine as a libvirt domain's XML, and what libvirt does not do by itself.

What libvirt has elements for is in elements: memory, processors, firmware's choices, our disks and displays.
All other arguments of QEMU are passed as they are. libvirt starts the program of a display; those of other
devices are to be started first, with sockets that QEMU may open.
"""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from vhostd.ctl.machine.command import Machine
from vhostd.ctl.machine.devices import Device
from vhostd.ctl.machine.memory import memory_size
from vhostd.ctl.machine.words import Words
from vhostd.errors import UsageError

NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"
SOCKETS = Path("/run/vhost")  # where the programs listen
GROUP = "libvirt-qemu"  # as which libvirt runs QEMU
FIRST_SLOT = 0x10  # on PCI bus 0, where libvirt begins from the other end
# Options that libvirt has elements for, or that are libvirt's own business.
TAKEN = (
    *("m", "machine", "smp", "accel", "enable-kvm", "cpu", "name", "uuid", "kernel", "initrd", "append"),
    *("nographic", "display", "vga", "nodefaults", "no-user-config", "serial", "monitor", "boot"),
)


def domain(machine: Machine) -> str:
    """The XML; raises UsageError for what is not made here."""
    words = machine.words
    if words.has("numa"):
        raise UsageError("-numa: a domain's XML for NUMA is not made here")
    name = _name(words)
    root = Element("domain", {"type": "kvm" if _uses_kvm(words) else "qemu", "xmlns:qemu": NAMESPACE})
    _text(root, "name", name)
    if uuid := words.property("uuid", "uuid", "uuid"):
        _text(root, "uuid", uuid)
    _text(root, "memory", str(memory_size(words)), unit="bytes")
    backing = SubElement(root, "memoryBacking")
    SubElement(backing, "source", type="memfd")
    SubElement(backing, "access", mode="shared")
    _text(root, "vcpu", words.property("smp", "cpus", "cpus") or "1")
    _boot(root, words)
    if (cpu := words.property("cpu", "model", "model")) in ("host", "max"):
        SubElement(root, "cpu", mode="host-passthrough" if cpu == "host" else "maximum")
    elements = SubElement(root, "devices")
    rest = _devices(elements, machine, name)
    _pass_on(root, [*rest, *_others(words)])
    indent(root)
    return tostring(root, encoding="unicode")


def _uses_kvm(words: Words) -> bool:
    accelerators = [words.property("machine", "accel", "type") or "", *words.values("accel")]
    return words.has("enable-kvm") or any("kvm" in each for each in accelerators)


def _boot(root: Element, words: Words) -> None:
    system = SubElement(root, "os")
    kind = {name: words.property("machine", "type", "type") or "" for name in ("machine",)}
    architecture = words.program.rpartition("qemu-system-")[2]
    if architecture != words.program:
        kind["arch"] = architecture
    _text(system, "type", "hvm", **{name: value for name, value in kind.items() if value})
    for option, element in (("kernel", "kernel"), ("initrd", "initrd"), ("append", "cmdline")):
        for value in words.values(option)[-1:]:
            _text(system, element, value)


def _devices(elements: Element, machine: Machine, name: str) -> list[str]:
    """Adds the elements of the devices that libvirt knows; returns QEMU's arguments for the others."""
    arguments: list[str] = []
    _text_console(elements)
    for device in machine.devices:
        if device.kind.boots:
            _disk(elements, device, _socket(device, name), first=not elements.findall("disk"))
        elif device.kind.is_display:
            video = SubElement(elements, "video")
            SubElement(video, "driver", name="vhostuser")
            model = SubElement(video, "model", type="virtio", heads=device.value("scanouts") or "1")
            SubElement(model, "acceleration", accel2d="no")
        elif device.kind.netdev:
            _interface(elements, device, _socket(device, name))
        else:
            slot = FIRST_SLOT + len(arguments) // 4
            arguments += ["-chardev", f"socket,id={device.name},path={_socket(device, name)}"]
            arguments += ["-device", f"{device.kind.device},chardev={device.name},addr={slot:#x}"]
    if not elements.findall("video"):
        SubElement(SubElement(elements, "video"), "model", type="none")
    return arguments


def _text_console(elements: Element) -> None:
    SubElement(SubElement(elements, "console", type="pty"), "target", type="serial", port="0")


def _disk(elements: Element, device: Device, socket: Path, *, first: bool) -> None:
    disk = SubElement(elements, "disk", type="vhostuser", device="disk")
    driver = SubElement(disk, "driver", name="qemu", type="raw")
    if queues := device.value("num-queues"):
        driver.set("queues", queues)
    source = SubElement(disk, "source", type="unix", path=str(socket))
    SubElement(source, "reconnect", enabled="yes", timeout="1")
    number = int(device.name.removeprefix(device.kind.name))
    SubElement(disk, "target", dev=f"vd{chr(ord('a') + number)}", bus="virtio")
    if first:
        SubElement(disk, "boot", order="1")


def _interface(elements: Element, device: Device, socket: Path) -> None:
    interface = SubElement(elements, "interface", type="vhostuser")
    if address := device.value("mac"):
        SubElement(interface, "mac", address=address)
    source = SubElement(interface, "source", type="unix", path=str(socket), mode="client")
    SubElement(source, "reconnect", enabled="yes", timeout="1")
    SubElement(interface, "model", type="virtio")
    if queues := device.value(device.kind.netdev):
        SubElement(interface, "driver", queues=queues)
    if mtu := device.value("mtu"):
        SubElement(interface, "mtu", size=mtu)


def _others(words: Words) -> Iterator[str]:
    """The arguments that libvirt is to pass on."""
    for name, value in words.options():
        if name not in TAKEN:
            yield from filter(None, (f"-{name}", value))


def _pass_on(root: Element, arguments: Sequence[str]) -> None:
    if arguments:
        line = SubElement(root, "qemu:commandline")
        for argument in arguments:
            SubElement(line, "qemu:arg", value=argument)


def commands(machine: Machine) -> Iterator[str]:
    """What is to be started before the domain, as shell commands."""
    name = _name(machine.words)
    started = [device for device in machine.devices if not device.kind.is_display]
    if started:
        yield f"mkdir -p {SOCKETS}"
    for device in started:
        folder = _socket(device, name).parent
        socket = f"--socket-path={_socket(device, name)}"
        own = replace(device, name=f"{name}-{device.name}")
        arguments = [socket, f"--socket-group={GROUP}", "--socket-mode=0660", *own.arguments(folder)]
        yield shlex.join([str(device.program), *arguments])


def _name(words: Words) -> str:
    return words.property("name", "guest", "guest") or "vhostd"


def _socket(device: Device, name: str) -> Path:
    return SOCKETS / f"{name}-{device.name}.sock"


def _text(parent: Element, name: str, text: str, **attributes: str) -> None:
    SubElement(parent, name, attributes).text = text
