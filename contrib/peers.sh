#!/usr/bin/env bash
# Makes a folder of vhost-user back-ends that others wrote, in the user's cache, and prints where it is. They are
# Debian's, of its development release; two are built from QEMU's source, and one is of an old release.
# contrib/peers.toml says how each is started. To make the folder needs root, to run what is in it does not.
#
#     contrib/peers.sh
#     contrib/peers.sh CHECKOUT     with devices of rust-vmm/vhost-device, built from a checkout of it
set -euo pipefail

readonly suite=sid source_suite=trixie old_suite=bookworm
readonly here="$(dirname "${BASH_SOURCE[0]}")"
. "$here/cache.sh"
. "$here/debian-mirror.sh"
. "$here/chroot.sh"
readonly target="$cache/peers"
readonly log="$cache/peers.log"
readonly packages=(
    qemu-system-common qemu-system-gui qemu-utils # qemu-storage-daemon, vhost-user-gpu
    qemu-system-x86 seabios                       # a front-end
    virtiofsd vhost-device-vsock passt
    dpdk-dev librte-net-vhost26 librte-net-null26 librte-mempool-ring26
)
readonly qemu_needs=(build-essential ninja-build meson pkg-config python3-venv libglib2.0-dev)
readonly rust_needs=(
    cargo gcc libc6-dev pkg-config
    librust-{clap+derive,env-logger,epoll,itertools,libc,log,nix+ioctl,rand,tempfile,thiserror}-dev
    librust-{vhost+vhost-user-backend,vhost-user-backend,virtio-bindings,virtio-queue,vm-memory,vmm-sys-util}-dev
)
readonly rust_devices=(rng rtc scmi scsi sound)

main() {
    [ "$(id -u)" = 0 ] || fail "a chroot needs root"
    checkout="${1:-}"
    mkdir -p "$cache"
    exec {lock}>"$cache/peers.lock"
    flock "$lock"
    local now
    now="$(cat "${BASH_SOURCE[0]}" "$here/chroot.sh" | sha256sum) $checkout"
    if [ "$(cat "$target/made-from" 2>/dev/null)" != "$now" ]; then
        echo "peers: making $target" >&2
        (set -x && make "$now") >"$log" 2>&1 || { tail -n 30 "$log" >&2 && fail "that did not work: see $log"; }
    fi
    echo "$target"
}

# Each step ends the subshell itself: bash ignores set -e inside a condition.
make() {
    work="$(mktemp -d "$cache/new.XXXXXX")" || exit
    trap 'rm -rf "$work"' EXIT
    install_debootstrap || exit
    debootstrap --variant=minbase --include=ca-certificates "$suite" "$work/root" "$(debian_mirror)" || exit
    prepare "$work/root" || exit
    package_sources || exit
    inside root apt-get install "${quick[@]}" "${packages[@]}" || exit
    inside root apt-get clean || exit
    cp -a "$work/root" "$work/build" || exit
    mkdir "$work/build/src" || exit
    old_virtiofsd || exit
    contrib_of_qemu || exit
    [ -z "$checkout" ] || rust_vmm_devices || exit
    runner || exit
    versions >"$work/versions" || exit
    rm -rf "$work/build" || exit
    echo "$1" >"$work/made-from" || exit
    chmod 755 "$work" && rm -rf "$target" && mv -T "$work" "$target" || exit
}

# A mirror may be behind: the index of a development release has an end, after which apt refuses it.
package_sources() {
    local etc="$work/root/etc/apt"
    echo 'Acquire::Check-Valid-Until "false";' >"$etc/apt.conf.d/late" || exit
    printf '%s\n' "deb $(debian_mirror) $suite main" "deb $(debian_mirror) $old_suite main" \
        "deb-src $(debian_mirror) $source_suite main" >"$etc/sources.list" || exit
    inside root apt-get update -qq
}

# The last virtiofsd in C. QEMU has dropped it.
old_virtiofsd() {
    inside build sh -c "cd /src && apt-get download -qq qemu-system-common/$old_suite &&
        dpkg-deb -x qemu-system-common_*.deb old" || exit
    install -D -t "$work/root/opt/old" "$work/build/src/old/usr/lib/qemu/virtiofsd"
}

contrib_of_qemu() {
    inside build apt-get install "${quick[@]}" "${qemu_needs[@]}" || exit
    inside build sh -c "cd /src && apt-get source -qq qemu/$source_suite && mkdir qemu && cd qemu &&
        ../qemu-*/configure --without-default-features --disable-system --disable-user --disable-docs \
            --disable-download --disable-install-blobs --enable-tools --enable-vhost-user &&
        ninja contrib/vhost-user-blk/vhost-user-blk tests/vhost-user-bridge" || exit
    install -D -t "$work/root/opt/qemu" "$work/build/src/qemu/contrib/vhost-user-blk/vhost-user-blk" \
        "$work/build/src/qemu/tests/vhost-user-bridge"
}

# With the libraries that Debian has: their versions are near those that the checkout names. What only its tests
# need is left out, and the sound cards of the host.
rust_vmm_devices() {
    local source="$work/build/src/vhost-device" device
    inside build apt-get install "${quick[@]}" "${rust_needs[@]}" || exit
    mkdir "$source" && git -C "$checkout" archive HEAD | tar -C "$source" -x && rm "$source/Cargo.lock" || exit
    sed -i "/^members = \[/,/^\]/c members = [$(printf '"vhost-device-%s",' "${rust_devices[@]}")]" \
        "$source/Cargo.toml" || exit
    sed -i -e '/dev-dependencies/,/^$/d' -e '/^itertools/s/"[0-9.]*"/"*"/' -e '/^nix/s/"[0-9.]*"/"*"/' \
        "$source"/vhost-device-*/Cargo.toml || exit
    sed -i -e '/^\[target/,/^$/d' -e 's/^\(default\|.*-backend\) = \[.*/\1 = []/' \
        "$source/vhost-device-sound/Cargo.toml" || exit
    inside build sh -c "cd /src/vhost-device && cargo build --offline --config 'source.crates-io.replace-with=\"debian\"' \
        --config 'source.debian.directory=\"/usr/share/cargo/registry\"'" || exit
    for device in "${rust_devices[@]}"; do
        install -D -t "$work/root/opt/rust-vmm" "$source/target/debug/vhost-device-$device" || exit
    done
}

# Programs of another Debian than this machine's start by their own loader. The process keeps its pid.
runner() {
    cat >"$work/run" <<'END' || exit
#!/bin/sh
# Starts a program of this folder: run PATH-IN-ROOT ARGUMENT...
root="$(dirname "$(realpath "$0")")/root"
program="$root/$1"
shift
export QEMU_MODULE_DIR="$root/usr/lib/x86_64-linux-gnu/qemu"
exec "$root/lib64/ld-linux-x86-64.so.2" --library-path "$root/usr/lib/x86_64-linux-gnu" "$program" "$@"
END
    chmod +x "$work/run"
}

# A line for each package, and for each program that is none of the packages of the root.
versions() {
    inside root dpkg-query -W -f '${Package} ${Version}\n' || exit
    echo "qemu-source $(cat "$work"/build/src/qemu-*/VERSION)" || exit
    echo "virtiofsd-c $(dpkg-deb -f "$work"/build/src/qemu-system-common_*.deb Version)" || exit
    [ -z "$checkout" ] || git -C "$checkout" log -1 --format='vhost-device %h of %cs'
}

fail() {
    echo "peers: $*" >&2
    exit 1
}

main "$@"
