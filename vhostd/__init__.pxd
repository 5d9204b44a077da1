# cython: language_level=3
"""The names that the author of a device needs in a native module."""

from vhostd.ring.chain cimport BYTES_OF_EFFORT, READ, RECEIVE, SEND, WRITE, Chain
from vhostd.ring.ring cimport Ring
from vhostd.ring.shortcut cimport BEGUN, DONE, LEFT, Shortcut
from vhostd.ring.system_calls cimport MOST_IOVECS, attempt, iovec
