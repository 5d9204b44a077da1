"""vhost-user-gpu: a display for a guest, without a GPU and without GL (virtio 1.3, 5.7).

    vhost-user-gpu --socket-path=/tmp/gpu.sock

    qemu-system-x86_64 -machine q35,accel=kvm:tcg,memory-backend=mem \\
        -object memory-backend-memfd,id=mem,size=1G,share=on \\
        -chardev socket,id=gpu,path=/tmp/gpu.sock \\
        -device vhost-user-vga,chardev=gpu -vga none -display gtk,gl=on \\
        -drive file=system.img,format=raw,if=virtio

The guest's driver makes pictures out of its memory, and says which part of a picture each monitor shows. The
front-end gets the pixels that have changed.

    controlq, cursorq --commands--> Card(Resources, Scanouts) --news--> Display --> the front-end's window
"""

from vhostd import Manifest

MANIFEST = Manifest(type="gpu", device="vhost_user_gpu.device:Gpu")
main = MANIFEST.main
