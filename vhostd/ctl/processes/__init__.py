"""The running programs of ours.

found        finds them among the processes of this machine
sockets      the AF_UNIX sockets of this machine, and who has them
front_end    where a program listens, and who is connected to it
rates        how much a program does in a second
"""
