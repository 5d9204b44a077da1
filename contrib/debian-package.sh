#!/usr/bin/env bash
# Builds the package for Debian 13 in a chroot of it, whatever Debian this machine has. Needs root.
#
#     contrib/debian-package.sh [FOLDER]     leaves vhostd_*.deb in FOLDER (default: build/debian)
set -euo pipefail

readonly root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
readonly output="${1:-$root/build/debian}"
case "$output" in -*) echo "usage: contrib/debian-package.sh [FOLDER]" >&2 && exit 2 ;; esac

. "$root/contrib/source.sh"

main() {
    local chroots work log
    chroots="$("$root/contrib/debian-chroot.sh")"
    mkdir -p "$output"
    work="$(mktemp -d "$chroots/build/tmp/vhostd.XXXXXX")"
    trap "rm -rf '$work'" EXIT
    log="$output/build.log"
    copy_source "$work/vhostd"
    cp -r "$root/contrib/debian" "$work/vhostd/debian"
    if ! build "$chroots/build" "${work#"$chroots/build"}/vhostd" >"$log" 2>&1; then
        tail -n 30 "$log" >&2
        echo "debian: that did not work (all of it: $log)" >&2
        exit 1
    fi
    rm -f "$output"/vhostd_*.deb
    cp "$work"/vhostd_*.deb "$output"
    ls "$output"/vhostd_*.deb
}

build() {
    chroot "$1" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/nonexistent LC_ALL=C.UTF-8 \
        DEB_BUILD_OPTIONS=noautodbgsym sh -c 'cd "$1" && exec dpkg-buildpackage -us -uc -b' sh "$2"
}

main
