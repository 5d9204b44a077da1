#!/usr/bin/env bash
# Unpacks QEMU's disk tools of Debian 13 into the user's cache: qemu-img, qemu-io, qemu-storage-daemon, and the
# block driver virtio-blk-vhost-user, which Debian 12's QEMU lacks. With it they are a front-end without a guest.
#
# Nothing is installed, no root is needed, and nothing runs in a chroot: apt fetches the packages and all that they
# need, the C library too, with lists and a state of its own. tests/blk/newer_qemu.py runs what is unpacked here.
set -euo pipefail

readonly suite=trixie
readonly packages=(qemu-utils qemu-block-extra)
. "$(dirname "${BASH_SOURCE[0]}")/cache.sh"
readonly target="$cache/qemu-tools-$suite"
readonly log="$cache/qemu-tools.log"
readonly keys=/usr/share/keyrings/debian-archive-keyring.gpg
readonly libraries=usr/lib/x86_64-linux-gnu

. "$(dirname "${BASH_SOURCE[0]}")/debian-mirror.sh"

main() {
    mkdir -p "$cache"
    exec {lock}>"$cache/qemu-tools.lock"
    flock "$lock"
    [ ! -d "$target" ] || return 0
    echo "setup: fetching QEMU's disk tools of Debian $suite into $target"
    work="$(mktemp -d "$cache/new.XXXXXX")"
    trap 'rm -rf "$work"' EXIT
    if ! (set -x && fetch && unpack && try) >"$log" 2>&1; then
        tail -n 30 "$log" >&2
        echo "setup: That did not work (all of its output: $log)" >&2
        exit 1
    fi
    mv -T "$work/root" "$target"
}

# Each step ends the subshell itself: bash ignores set -e inside a condition.
fetch() {
    mkdir -p "$work/lists/partial" "$work/archives/partial" "$work/root" || exit
    : >"$work/status" || exit
    echo "deb [arch=amd64 target=Packages signed-by=$keys] $(debian_mirror) $suite main" >"$work/sources.list" || exit
    apt update || exit
    apt install --yes --download-only --no-install-recommends "${packages[@]}" || exit
}

# The machine's own settings, a proxy for example, hold here as well; what it has installed does not.
apt() {
    apt-get -q -o Dir::Etc::SourceList="$work/sources.list" -o Dir::Etc::SourceParts=/dev/null \
        -o Dir::Etc::Preferences=/dev/null -o Dir::Etc::PreferencesParts=/dev/null \
        -o Dir::State="$work" -o Dir::State::Lists="$work/lists" -o Dir::State::Status="$work/status" \
        -o Dir::Cache="$work" -o Dir::Cache::Archives="$work/archives" -o Dir::Log="$work" \
        -o APT::Architecture=amd64 -o APT::Sandbox::User=root -o Acquire::Retries=3 "$@"
}

unpack() {
    local package
    for package in "$work"/archives/*.deb; do
        dpkg-deb -x "$package" "$work/root" || exit
    done
    rm -rf "$work/root"/{etc,var,usr/share} || exit
}

# A tool that does not start, or has no such driver, must not get into the cache.
try() {
    local root="$work/root"
    "$root/usr/lib64/ld-linux-x86-64.so.2" --library-path "$root/$libraries" "$root/usr/bin/qemu-img" --version || exit
    [ -e "$root/$libraries/qemu/block-blkio.so" ] || exit
}

main
