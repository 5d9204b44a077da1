"""A device as a program: options, sockets, signals, exit status."""
