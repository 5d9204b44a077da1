"""What the tests of Helper have started: it answers packets, and ends as it is told to."""

import os
import signal
import socket
import sys


def main() -> None:
    """Serves on the socket that the command line names."""
    sock = socket.socket(fileno=int(sys.argv[1]))
    print("it is there", sys.argv[2:], flush=True)
    while said := sock.recv(64):
        if said == b"crash":
            signal.raise_signal(signal.SIGSEGV)
        if said == b"exit":
            raise SystemExit(3)
        if said == b"fds":
            sock.send(" ".join(sorted(os.listdir("/proc/self/fd"))).encode())
            continue
        sock.send(said + str(os.getpid()).encode())


if __name__ == "__main__":
    main()
