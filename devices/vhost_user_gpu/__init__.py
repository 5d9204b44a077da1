"""vhost-user-gpu: a display for a guest, in 2D without a GPU, or in 3D by OpenGL (virtio 1.3, 5.7).

    vhost-user-gpu --socket-path=/tmp/gpu.sock

    qemu-system-x86_64 -machine q35,accel=kvm:tcg,memory-backend=mem \\
        -object memory-backend-memfd,id=mem,size=1G,share=on \\
        -chardev socket,id=gpu,path=/tmp/gpu.sock \\
        -device vhost-user-vga,chardev=gpu -vga none -display gtk,gl=on \\
        -drive file=system.img,format=raw,if=virtio

The guest's driver makes pictures out of its memory, and says which part of a picture each monitor shows. The
front-end gets the pixels that have changed.

    controlq, cursorq --commands--> Card(Resources, Scanouts) --news--> Display --> the front-end's window
                                     |
                                 with --virgl: a renderer, in a process of its own (virgl/)
"""

import os
import sys

from vhostd import Manifest

VIRGL = "libvirglrenderer.so.1"
NODES = "/dev/dri"


def capabilities() -> tuple[str, ...]:
    """What this host has for 3D: a look for files. libvirt gives a node to whoever says that it takes one."""
    machine = getattr(sys.implementation, "_multiarch", "")
    folders = (f"/usr/lib/{machine}", "/usr/lib64", "/usr/lib", "/usr/local/lib")
    if not any(os.path.exists(f"{folder}/{VIRGL}") for folder in folders):
        return ()
    try:
        has_node = any(name.startswith("renderD") for name in os.listdir(NODES))
    except OSError:
        has_node = False
    return ("render-node", "virgl") if has_node else ("virgl",)


MANIFEST = Manifest(type="gpu", device="vhost_user_gpu.device:Gpu", capabilities=capabilities())
main = MANIFEST.main
