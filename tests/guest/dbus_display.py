"""QEMU's D-Bus display (-display dbus,p2p=on), which can tell the guest what its screens should be like.

A window around a screen would do that when a user resizes it. The methods are those of QEMU's
ui/dbus-display1.xml. QEMU ends if one tries to look at vhost-user-gpu's pictures this way without
OpenGL (RegisterListener), so nobody does.
"""

import array
import socket
import time
from typing import Any

from jeepney import DBusAddress, Message, MessageType, Parser, new_method_call
from jeepney.auth import BEGIN, Authenticator

from tests.guest.qmp import Qmp

DISPLAY_OPTION = "dbus,p2p=on"
CONSOLE = "org.qemu.Display1.Console"
NOBODY = "no.bus"  # a call must name its destination, which means nothing without a bus
RECEIVE_SIZE = 65536
TIMEOUT = 20.0


class DBusError(Exception):
    """QEMU refused a call."""


class Display:
    """A connection to QEMU's display; its consoles are numbered like the screens."""

    def __init__(self, qmp: Qmp) -> None:
        self._socket, theirs = socket.socketpair()
        self._socket.settimeout(TIMEOUT)
        self._parser = Parser()
        self._serial = 0
        with theirs:
            qmp.execute("getfd", {"fdname": "display"}, fds=[theirs.fileno()])
        qmp.execute("add_client", {"protocol": "@dbus-display", "fdname": "display"})
        self._authenticate()

    def resize(self, width: int, height: int, console: int = 0) -> None:
        """Tells the guest that its screen should have this size; 0 by 0 unplugs it.

        Raises DBusError, TimeoutError.
        """
        millimetres = (width // 4, height // 4)
        self._call(console, "SetUIInfo", "qqiiuu", *millimetres, 0, 0, width, height)

    def close(self) -> None:
        """Disconnects; QEMU goes on, and the screens stay as they are."""
        self._socket.close()

    def _authenticate(self) -> None:
        """Says who we are ("Authentication Protocol" in the D-Bus specification)."""
        authenticator = Authenticator()
        for line in authenticator:
            self._socket.sendall(line)
            authenticator.feed(self._socket.recv(RECEIVE_SIZE))
        self._socket.sendall(BEGIN)

    def _call(self, console: int, method: str, signature: str, *arguments: Any) -> None:
        address = DBusAddress(f"/org/qemu/Display1/Console_{console}", NOBODY, CONSOLE)
        self._serial += 1
        call = new_method_call(address, method, signature, arguments)
        self._socket.sendall(call.serialise(self._serial, array.array("i")))
        answers = (MessageType.method_return, MessageType.error)
        deadline = time.monotonic() + TIMEOUT
        while (message := self._receive()).header.message_type not in answers:  # signals
            if time.monotonic() > deadline:
                raise TimeoutError(method)
        if message.header.message_type is MessageType.error:
            raise DBusError(f"{method}: {message.body}")

    def _receive(self) -> Message:
        while (message := self._parser.get_next_message()) is None:
            data = self._socket.recv(RECEIVE_SIZE)
            if not data:
                raise ConnectionError("QEMU has closed the D-Bus connection")
            self._parser.add_data(data)
        return message
