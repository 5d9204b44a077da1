"""The kinds of device. A kind is a row here, and an option of `vhostctl run`."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Kind:
    """A kind of device: the program that is it, and what QEMU calls it.

    The option's value begins with the value of `source`, an option of the program; the program's own options
    follow. QEMU's device must know the values of those in `properties`, by the names there; those in `qemus`
    it is told alone. A kind of `events` without a source of its own listens for events of scripts. `refused`
    has patterns of sources that are a mistake, and what to do instead.
    """

    name: str
    program: str
    device: str
    help: str
    metavar: str  # of the option's value
    source: str = ""
    needs_value: bool = False
    properties: Mapping[str, str] = field(default_factory=dict)
    qemus: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    in_parts: bool = False  # the source goes on in words that are no options of the program
    events: bool = False
    terminal: bool = False  # without a source of its own it has a terminal of the host
    boots: bool = False
    is_display: bool = False
    vga: str = ""  # QEMU's device that the firmware of a PC can use as well
    comes_back: bool = False  # QEMU connects again when the program has ended
    netdev: str = ""  # the option that is -netdev's `queues`, if QEMU's device is on one
    since: tuple[int, int] = (0, 0)  # the first version of QEMU that has the device
    loss: str = ""  # what it does to a guest that its program ends, if that is more than a device less


def _input(name: str) -> Kind:
    return Kind(
        name=name,
        program="vhost-user-input",
        device="vhost-user-input-pci",
        help=f"a {name}: an evdev node of the host, or by default one to script",
        metavar="PATH[,OPTION...]",
        source="evdev-path",
        events=True,
    )


KINDS = (
    Kind(
        name="disk",
        program="vhost-user-blk",
        device="vhost-user-blk-pci",
        help="a disk: an image file or a block device",
        metavar="IMAGE[,OPTION...]",
        source="blk-file",
        needs_value=True,
        properties={"num-queues": "num-queues"},
        boots=True,
        comes_back=True,
    ),
    Kind(
        name="display",
        program="vhost-user-gpu",
        device="vhost-user-gpu-pci",
        help="a display",
        metavar="OPTION...",
        properties={"scanouts": "max_outputs"},
        is_display=True,
        vga="vhost-user-vga",
    ),
    _input("keyboard"),
    _input("mouse"),
    _input("tablet"),
    _input("touchscreen"),
    Kind(
        name="net",
        program="vhost-user-net",
        device="virtio-net-pci",
        help="a network card: a tap device of the host, or with stream=PATH passt",
        metavar="TAP[,OPTION...]",
        source="tap",
        needs_value=True,
        qemus={"mac": "mac", "mtu": "host_mtu"},
        refused={
            "s[a-z]*=.*": "write stream=PATH",
            ".*/.*": "this is no name of a tap device; for a socket, such as passt's, write stream=PATH",
        },
        comes_back=True,
        netdev="queue-pairs",
    ),
    Kind(
        name="console",
        program="vhost-user-console",
        device="vhost-user-test-device-pci,virtio-id=3,num_vqs=2,config_size=12",
        help="a console: a port, or by default a pseudo-terminal, whose path is printed; needs QEMU 10.2",
        metavar="PORT[,OPTION...]",
        source="port",
        refused={"(.*,)?stdio(,.*)?": "the terminal is QEMU's here; take pty, and open it in another one"},
        in_parts=True,
        terminal=True,
        since=(10, 2),
        loss="; a guest with Linux hangs as soon as it writes there: end it",
    ),
    Kind(
        name="rng",
        program="vhost-user-rng",
        device="vhost-user-rng-pci",
        help="an entropy source: a device or a file, or by default the host's random numbers",
        metavar="PATH[,OPTION...]",
        source="rng-source",
    ),
    Kind(
        name="vsock",
        program="vhost-user-vsock",
        device="vhost-user-vsock-pci",
        help="sockets between guest and host: a path where clients of the host are taken",
        metavar="PATH[,OPTION...]",
        source="uds-path",
        needs_value=True,
        refused={r"\d+": "this is to be a path; the guest's address is an option: PATH,guest-cid={}"},
    ),
)
