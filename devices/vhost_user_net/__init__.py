"""vhost-user-net: a network card, on a tap device of the host, passt, or another guest (virtio 1.3, 5.1).

    vhost-user-net --socket-path=/tmp/net.sock --stream=/tmp/passt.sock

    qemu-system-x86_64 -machine q35,accel=kvm:tcg,memory-backend=mem \\
        -object memory-backend-memfd,id=mem,size=1G,share=on \\
        -chardev socket,id=net,path=/tmp/net.sock,reconnect-ms=1000 \\
        -netdev vhost-user,id=net,chardev=net -device virtio-net-pci,netdev=net \\
        -drive file=system.img,format=raw,if=virtio

passt, which listens there, gives the guest the Internet. --tap=tap0 leads to a tap device of the host. Its
administrator makes that once: ip tuntap add dev tap0 mode tap user $USER

    transmitq --chains--> Transmit --packets--> Netdev --packets--> Receive --chains--> receiveq
"""

from vhostd import Manifest

MANIFEST = Manifest(type="net", device="vhost_user_net.device:Net")
main = MANIFEST.main
