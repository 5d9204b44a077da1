"""vhost-user-input: a keyboard, mouse, tablet or touchscreen for a guest (virtio 1.3, 5.8).

    vhost-user-input --socket-path=/tmp/kbd.sock --event-socket=/tmp/keys.sock

    qemu-system-x86_64 -machine q35,accel=kvm:tcg,memory-backend=mem \\
        -object memory-backend-memfd,id=mem,size=1G,share=on \\
        -chardev socket,id=kbd,path=/tmp/kbd.sock \\
        -device vhost-user-input-pci,chardev=kbd \\
        -drive file=system.img,format=raw,if=virtio

This is a keyboard for scripts: who connects to /tmp/keys.sock types for the guest. With
--evdev-path=/dev/input/event3 instead, the guest gets a keyboard of the host, and the host has it back when
the program ends; with --grab-toggle both Control keys, pressed together, give it back before.

The events come from an evdev node of the host (--evdev-path), from a recording in evemu's format
(--evemu-path), from programs that write such events to a socket (--event-socket), or from the last two.

    sources' Origins --whole reports--> Feed(Backlog) --events--> eventq        statusq --LEDs--> sources
"""

from vhostd import Manifest

MANIFEST = Manifest(
    type="input", device="vhost_user_input.device:Input", capabilities=("evdev-path", "no-grab")
)
main = MANIFEST.main
