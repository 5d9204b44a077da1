# cython: language_level=3
"""The names that the author of a device needs in a native module."""

from vhostd.ring.chain cimport READ, WRITE, Chain
from vhostd.ring.shortcut cimport BEGUN, DONE, LEFT, Shortcut
