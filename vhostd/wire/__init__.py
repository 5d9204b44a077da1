"""Bytes, fds and messages: the parts of any protocol on a socket."""
