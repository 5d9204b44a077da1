"""vhost-user-input: a keyboard, mouse, tablet or touchscreen for a guest (virtio 1.3, 5.8).

    vhost-user-input --socket-path=/tmp/kbd.sock --evdev-path=/dev/input/event3

    qemu-system-x86_64 ... \\
        -object memory-backend-memfd,id=mem,size=1G,share=on -machine q35,memory-backend=mem \\
        -chardev socket,id=kbd,path=/tmp/kbd.sock -device vhost-user-input-pci,chardev=kbd

The events come from an evdev node of the host (--evdev-path), from a recording in evemu's format
(--evemu-path), from programs that write such events to a socket (--event-socket), or from the last two.

    sources' Origins --whole reports--> Feed(Backlog) --events--> eventq        statusq --LEDs--> sources
"""

from vhostd import Manifest

MANIFEST = Manifest(
    type="input", device="vhost_user_input.device:Input", capabilities=("evdev-path", "no-grab")
)
main = MANIFEST.main
