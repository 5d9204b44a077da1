"""vhost-user-console: consoles and serial ports for a guest (virtio 1.3, 5.3).

    vhost-user-console --socket-path=/tmp/con.sock --port=pty,link=/tmp/console

    qemu-system-x86_64 -machine q35,accel=kvm:tcg,memory-backend=mem \\
        -object memory-backend-memfd,id=mem,size=1G,share=on \\
        -chardev socket,id=con,path=/tmp/con.sock \\
        -device vhost-user-test-device-pci,chardev=con,virtio-id=3,num_vqs=2,config_size=12 \\
        -drive file=system.img,format=raw,if=virtio

`screen /tmp/console` is the guest's console then, /dev/hvc0 in Linux. QEMU has this device from 10.2 on.
With more ports than a console, num_vqs is twice the number of ports and 2.

The guest's end of a port is two queues. The host's end is a `Line`: a pseudo-terminal, a socket, a file, or
the program's own terminal.

    Line --its fd--> Input (a pump) --> receiveq       transmitq --> Output (a shortcut) --> Outlet --> Line
"""

from vhostd import Manifest

MANIFEST = Manifest(type="console", device="vhost_user_console.device:Console")
main = MANIFEST.main
