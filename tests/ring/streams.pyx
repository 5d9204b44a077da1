# cython: language_level=3
"""The streams of a chain as a shortcut has them, for Python."""

from vhostd cimport READ, RECEIVE, SEND, WRITE, Chain

CALLS = {"read": READ, "write": WRITE, "receive": RECEIVE, "send": SEND}


def peek(Chain chain, size_t n):
    """`Chain.peek`: the bytes, or None where it says no."""
    cdef bytearray into = bytearray(n + 1)
    cdef unsigned char *at = into
    return bytes(into[:n]) if chain.peek(at, n) else None


def take(Chain chain, size_t n):
    """`Chain.take`: the bytes."""
    cdef bytearray into = bytearray(n + 1)
    cdef unsigned char *at = into
    chain.take(at, n)
    return bytes(into[:n])


def put(Chain chain, const unsigned char[:] data):
    """`Chain.put`."""
    chain.put(&data[0], len(data))


def attempt(Chain chain, str call, int fd, long long offset, size_t n, int flags, size_t skip):
    """`Chain.attempt`."""
    return chain.attempt(CALLS[call], fd, offset, n, flags, skip)
