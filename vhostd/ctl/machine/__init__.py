"""A virtual machine with devices of ours, as `vhostctl run` makes it.

kinds, devices, mac   which devices there can be, which were asked for, and a network card's address
machine_file          a set of devices that one keeps
words, memory, fit    QEMU's command line: what it says, and what does not go with our devices
command               QEMU's command line with our devices
script, domain        the same as shell commands, and as libvirt's XML
children, service     a process that ends with us; a device's program
running, terminal     all of it running, and the terminal that QEMU uses
"""
