#!/usr/bin/env bash
# Unpacks Mesa and libvirglrenderer of Debian 13 into the user's cache: llvmpipe makes dmabufs since Mesa 24.1, where
# there is /dev/udmabuf, and Debian 12 has Mesa 22.3. tests/guest/test_gpu_3d.py takes it into a guest.
set -euo pipefail

readonly what="Mesa" suite=trixie
readonly packages=(libegl1 libegl-mesa0 libvirglrenderer1)
. "$(dirname "${BASH_SOURCE[0]}")/cache.sh"
readonly target="$cache/mesa-$suite"
readonly libraries=usr/lib/x86_64-linux-gnu

. "$(dirname "${BASH_SOURCE[0]}")/unpack.sh"

try() {
    local library root="$work/root"
    for library in libEGL_mesa.so.0 libvirglrenderer.so.1; do
        LD_TRACE_LOADED_OBJECTS=1 "$root/usr/lib64/ld-linux-x86-64.so.2" --library-path "$root/$libraries" \
            "$root/$libraries/$library" || exit
    done
}

unpack_packages
