"""vhost-user-blk: a file, a block device or memory as a guest's disk (virtio 1.3, 5.2).

    vhost-user-blk --socket-path=/tmp/blk.sock --blk-file=disk.img

    qemu-system-x86_64 -machine q35,accel=kvm:tcg,memory-backend=mem \\
        -object memory-backend-memfd,id=mem,size=1G,share=on \\
        -chardev socket,id=blk,path=/tmp/blk.sock \\
        -device vhost-user-blk-pci,chardev=blk

    requestqs --chains--> Requests --what need not wait--> Image
                                   --what must--> Engine --> Image
"""

from vhostd import Manifest

MANIFEST = Manifest(type="block", device="vhost_user_blk.device:Blk", capabilities=("read-only", "blk-file"))
main = MANIFEST.main
