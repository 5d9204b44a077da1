"""vhost-user-net: a network card, on a tap device of the host, passt, or another guest (virtio 1.3, 5.1).

    ip tuntap add dev tap0 mode tap user $USER && ip link set tap0 up
    vhost-user-net --socket-path=/tmp/net.sock --tap=tap0

    qemu-system-x86_64 -machine q35,accel=kvm:tcg,memory-backend=mem \\
        -object memory-backend-memfd,id=mem,size=1G,share=on \\
        -chardev socket,id=net,path=/tmp/net.sock,reconnect-ms=1000 \\
        -netdev vhost-user,id=net,chardev=net -device virtio-net-pci,netdev=net

    transmitq --chains--> Transmit --packets--> Netdev --packets--> Receive --chains--> receiveq
"""

from vhostd import Manifest

MANIFEST = Manifest(type="net", device="vhost_user_net.device:Net")
main = MANIFEST.main
