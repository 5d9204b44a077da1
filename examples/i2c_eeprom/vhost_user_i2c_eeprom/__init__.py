"""vhost-user-i2c-eeprom: an I2C bus with an EEPROM, for a guest.

    vhost-user-i2c-eeprom --socket-path=/tmp/i2c.sock --contents=eeprom.bin

    qemu-system-x86_64 -machine q35,accel=kvm:tcg,memory-backend=mem \\
        -object memory-backend-memfd,id=mem,size=1G,share=on \\
        -chardev socket,id=i2c,path=/tmp/i2c.sock \\
        -device vhost-user-i2c-pci,chardev=i2c \\
        -drive file=system.img,format=raw,if=virtio
"""

from vhostd import Manifest

MANIFEST = Manifest(type="i2c-adapter", device="vhost_user_i2c_eeprom.device:Eeprom")
main = MANIFEST.main
