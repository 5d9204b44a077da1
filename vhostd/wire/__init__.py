"""Bytes, fds and messages: what any protocol on a socket is made of."""
