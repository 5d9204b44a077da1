#!/usr/bin/env bash
# Makes two chroots of Debian 13 in the user's cache: `build` has what the package is built and checked with
# (contrib/debian-package.sh), and `bare` what an installed package depends on, for the tests. Prints where they
# are. Needs root.
set -euo pipefail

readonly suite=trixie
readonly here="$(dirname "${BASH_SOURCE[0]}")"
. "$here/cache.sh"
readonly target="$cache/debian-$suite"
readonly log="$cache/debian-$suite.log"
readonly runtime=(
    libseccomp2 python3 python3-evdev python3-jsonschema python3-pydantic python3-systemd python3-uvloop
    systemd # whose units are verified
)
readonly neighbours=(qemu-system-common qemu-system-gui virtiofsd) # none of their files may be ours

. "$here/debian-mirror.sh"
. "$here/chroot.sh"

main() {
    [ "$(id -u)" = 0 ] || fail "chroots need root"
    mkdir -p "$cache"
    exec {lock}>"$cache/debian-$suite.lock"
    flock "$lock"
    local now
    now="$(cat "${BASH_SOURCE[0]}" "$here/chroot.sh" "$here/debian/control" | sha256sum)"
    if [ "$(cat "$target/made-from" 2>/dev/null)" != "$now" ]; then
        echo "debian: making chroots of Debian $suite in $target" >&2
        (set -x && make "$now") >"$log" 2>&1 || { tail -n 30 "$log" >&2 && fail "that did not work: see $log"; }
    fi
    echo "$target"
}

# Each step ends the subshell itself: bash ignores set -e inside a condition.
make() {
    work="$(mktemp -d "$cache/new.XXXXXX")" || exit
    trap 'rm -rf "$work"' EXIT
    install_debootstrap || exit
    debootstrap --variant=minbase --include=ca-certificates "$suite" "$work/bare" "$(debian_mirror)" || exit
    prepare "$work/bare" || exit
    cp -a "$work/bare" "$work/build" || exit
    mkdir -p "$work/build/control/debian" && cp "$here/debian/control" "$work/build/control/debian" || exit
    inside build apt-get install "${quick[@]}" build-essential lintian || exit
    inside build apt-get build-dep "${quick[@]}" ./control || exit
    inside bare apt-get install "${quick[@]}" "${runtime[@]}" || exit
    inside bare sh -c "cd /srv && apt-get download -qq ${neighbours[*]}" || exit
    inside build apt-get clean && inside bare apt-get clean || exit
    echo "$1" >"$work/made-from" || exit
    rm -rf "$target" && mv -T "$work" "$target" || exit
}

fail() {
    echo "debian: $*" >&2
    exit 1
}

main
