"""Who gets the events of an evdev node: the host's programs, or this one alone (EVIOCGRAB)."""

import errno
from contextlib import suppress

from vhost_user_input.evdev_node import Node, held_keys, reason

KEYS_DOWN = "keys are down"  # without their names: the log must not show what the host's user types


def take(node: Node, *, alone: bool) -> str:
    """Takes the node over, `alone` if wanted, unless a key is down. Returns the obstacle, or "" if done.

    Whoever saw a key pressed must see it released. Often the Enter that started the virtual machine is still
    down, and the host saw it pressed.
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
    if held_keys(node):  # it was pressed just before the grab: the host may have seen it
        node.ungrab()
        return KEYS_DOWN
    return ""


def give(node: Node) -> None:
    """Lets all programs of the host have the events again, at once."""
    with suppress(OSError):  # the device is gone, or was not grabbed
        node.ungrab()
