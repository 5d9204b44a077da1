#!/usr/bin/env bash
# Unpacks QEMU's disk tools of Debian 13 into the user's cache: qemu-img, qemu-io, qemu-storage-daemon, and the
# block driver virtio-blk-vhost-user, which Debian 12's QEMU lacks. With it they are a front-end without a guest.
# tests/blk/newer_qemu.py runs what is unpacked here.
set -euo pipefail

readonly what="QEMU's disk tools" suite=trixie
readonly packages=(qemu-utils qemu-block-extra)
. "$(dirname "${BASH_SOURCE[0]}")/cache.sh"
readonly target="$cache/qemu-tools-$suite"
readonly libraries=usr/lib/x86_64-linux-gnu

. "$(dirname "${BASH_SOURCE[0]}")/unpack.sh"

# A tool that does not start, or has no such driver, must not get into the cache.
try() {
    local root="$work/root"
    "$root/usr/lib64/ld-linux-x86-64.so.2" --library-path "$root/$libraries" "$root/usr/bin/qemu-img" --version || exit
    [ -e "$root/$libraries/qemu/block-blkio.so" ] || exit
}

unpack_packages
