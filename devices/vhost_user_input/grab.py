"""Who gets the events of an evdev node: the host's programs, or this one alone (EVIOCGRAB)."""

import errno
from contextlib import suppress

from vhost_user_input.evdev_node import Node, held_keys, reason

KEYS_DOWN = "keys are down"  # which ones, a log must not tell: it would be what the host's user types


def take(node: Node, *, alone: bool) -> str:
    """Begins with the node while no key is down, alone if that is wanted; says what is in the way.

    Who saw a key pressed is to see it released: the host, where the Enter that started the virtual machine
    is often still down.
    """
    if held_keys(node):
        return KEYS_DOWN
    if not alone:
        return ""
    try:
        node.grab()
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return reason(error)
    if held_keys(node):  # the host may have seen it pressed, just before
        node.ungrab()
        return KEYS_DOWN
    return ""


def give(node: Node) -> None:
    """Lets all have the events again, at once."""
    with suppress(OSError):  # the device is gone, or was never taken
        node.ungrab()
