"""vhost-user-rng: entropy for the guest, and the device to read first.

    vhost-user-rng --socket-path=/tmp/rng.sock

    qemu-system-x86_64 -machine q35,accel=kvm:tcg,memory-backend=mem \\
        -object memory-backend-memfd,id=mem,size=1G,share=on \\
        -chardev socket,id=rng,path=/tmp/rng.sock \\
        -device vhost-user-rng-pci,chardev=rng \\
        -drive file=system.img,format=raw,if=virtio

A device is a class with a kind and a handler for each of its virtqueues, here one (virtio 1.3, 5.4). The core
does the rest: socket, memory, rings, interrupts, reset.
"""

from vhostd import Manifest

MANIFEST = Manifest(type="rng", device="vhost_user_rng.device:Rng")
main = MANIFEST.main
