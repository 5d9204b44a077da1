"""vhost-user-vsock: sockets between a guest and its host (virtio 1.3, 5.10).

    vhost-user-vsock --socket-path=/tmp/vsock.sock --guest-cid=3 --uds-path=/tmp/vm3.vsock

    qemu-system-x86_64 -machine q35,accel=kvm:tcg,memory-backend=mem \\
        -object memory-backend-memfd,id=mem,size=1G,share=on \\
        -chardev socket,id=vsock,path=/tmp/vsock.sock \\
        -device vhost-user-vsock-pci,chardev=vsock \\
        -drive file=system.img,format=raw,if=virtio

What listens on port 1234 in the guest, a client on the host reaches by the socket /tmp/vm3.vsock: it writes
"CONNECT 1234", and the answer is "OK" with a number. When a program in the guest connects to port 5000 of its
host, CID 2, it reaches the server that listens at /tmp/vm3.vsock_5000.

    clients --Switchboard--> Connection <--Outbound-- txq
                             Connection ---Inbound--> rxq
"""

from vhostd import Manifest

MANIFEST = Manifest(type="vsock", device="vhost_user_vsock.device:Vsock")
main = MANIFEST.main
