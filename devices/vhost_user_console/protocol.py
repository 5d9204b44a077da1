"""What a driver and a console device say to each other (virtio 1.3, 5.3.3, 5.3.4 and 5.3.6.2)."""

from vhostd import Bit, Layout, u16, u32


class ConsoleFeature:
    """Feature bits of the device."""

    SIZE = Bit(0)
    MULTIPORT = Bit(1)
    EMERG_WRITE = Bit(2)


class Event:
    """Control messages."""

    DEVICE_READY = 0
    PORT_ADD = 1
    PORT_REMOVE = 2
    PORT_READY = 3
    CONSOLE_PORT = 4
    RESIZE = 5
    PORT_OPEN = 6
    PORT_NAME = 7


class VirtioConsoleConfig(Layout):
    """struct virtio_console_config."""

    cols: u16
    rows: u16
    max_nr_ports: u32
    emerg_wr: u32


class VirtioConsoleControl(Layout):
    """struct virtio_console_control."""

    id: u32
    event: u16
    value: u16


class VirtioConsoleResize(Layout):
    """struct virtio_console_resize."""

    cols: u16
    rows: u16


EMERG_WR = 8  # the offset of `emerg_wr` in the config space
