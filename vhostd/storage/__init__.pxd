# cython: language_level=3
"""The names that the author of a disk needs in a native module, beside those of `vhostd`."""

from vhostd.ring.uring cimport Uring
