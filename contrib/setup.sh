#!/usr/bin/env bash
# Prepares a Debian machine to run the demo and the tests: packages, a Python environment in .venv,
# and, in the user's cache, a kernel for the guest and QEMU's disk tools. What is there already is left as it is.
#
# PYTHON names the interpreter for .venv (default: /usr/bin/python3).
set -euo pipefail

readonly root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
readonly cache="${XDG_CACHE_HOME:-$HOME/.cache}/vhostd"
readonly python="${PYTHON:-/usr/bin/python3}"
readonly venv="$root/.venv"
readonly log="$cache/setup.log"
readonly backports=bookworm-backports
readonly qemu_needed=10
readonly libvirt_needed=11
readonly kernel=linux-image-amd64
readonly kernel_needs=CONFIG_UDMABUF=y # as kernels have it since Debian 13's

readonly packages=(
    python3-venv python3-dev gcc libc6-dev libsystemd-dev pkg-config # .venv
    busybox-static                                                    # the guest's initramfs
    libseccomp2                                                       # the programs' sandbox
    systemd evemu-tools edid-decode                                   # used by some tests
    mandoc groff-base zsh fish                                        # to check manual pages and completions
    e2fsprogs fio mount util-linux dmsetup                            # used in the guest, on a disk
    user-mode-linux                                                   # a kernel that runs as a process: another front-end
)
readonly qemu_packages=(
    qemu-system-x86 qemu-system-common qemu-system-data seabios
    qemu-system-modules-opengl # -display dbus, for some tests
)
readonly libvirt_packages=(
    libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients # used by some tests
    libvirt0 libvirt-common libvirt-daemon-common libvirt-daemon-log
)

. "$root/contrib/debian-mirror.sh"

main() {
    check_machine
    one_at_a_time
    install_packages
    fetch_kernel
    "$root/contrib/qemu-tools.sh"
    make_environment
}

check_machine() {
    [ "$(uname -m)" = x86_64 ] || fail "The guest is an x86-64 machine, so this needs an x86-64 host."
    if ! command -v apt-get dpkg-query >/dev/null; then
        fail "This script installs Debian packages and found no apt-get. It is made for Debian 12 or later."
    fi
}

one_at_a_time() {
    mkdir -p "$cache"
    exec {lock}>"$cache/setup.lock"
    flock "$lock"
}

install_packages() {
    local missing
    mapfile -t missing < <(missing_packages)
    if ! qemu_is_new_enough || ! qemu_has_dbus_display; then
        on_bookworm && add_backports
        mapfile -t -O "${#missing[@]}" missing < <(printf '%s\n' "${qemu_packages[@]}" | from_backports)
    fi
    if ! libvirt_is_new_enough; then
        on_bookworm && add_backports
        mapfile -t -O "${#missing[@]}" missing < <(printf '%s\n' "${libvirt_packages[@]}" | from_backports)
    fi
    [ "${#missing[@]}" -gt 0 ] || return 0
    update_package_lists
    step "installing ${#missing[@]} Debian packages: ${missing[*]}" \
        without_services \
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes \
        -o DPkg::Lock::Timeout=300 --no-install-recommends "${missing[@]}"
    qemu_is_new_enough || fail "QEMU $qemu_needed or later is needed; this is $(qemu_version)."
    libvirt_is_new_enough || fail "libvirt $libvirt_needed or later is needed; this is $(libvirt_version)."
}

# What is installed shall not run on this machine: the tests start what they need (see invoke-rc.d(8)).
without_services() (
    local policy=/usr/sbin/policy-rc.d
    if [ ! -e $policy ]; then
        trap 'as_root rm -f $policy' EXIT
        printf '#!/bin/sh\nexit 101\n' | as_root tee $policy
        as_root chmod 755 $policy
    fi
    "$@"
)

missing_packages() {
    local installed
    installed="$(dpkg-query -W -f '${db:Status-Status} ${Package}\n' "${packages[@]}" 2>/dev/null || true)"
    local package
    for package in "${packages[@]}"; do
        grep -qx "installed $package" <<<"$installed" || echo "$package"
    done
}

qemu_version() {
    qemu-system-x86_64 --version 2>/dev/null | sed -n 's/^QEMU emulator version \([0-9.]*\).*/\1/p'
}

qemu_is_new_enough() {
    local version
    version="$(qemu_version)"
    [ -n "$version" ] && [ "${version%%.*}" -ge "$qemu_needed" ]
}

qemu_has_dbus_display() {
    grep -qx dbus <<<"$(qemu-system-x86_64 -display help)"
}

libvirt_version() {
    /usr/sbin/libvirtd --version 2>/dev/null | sed -n 's/^.*(libvirt) \([0-9.]*\).*/\1/p'
}

libvirt_is_new_enough() {
    local version
    version="$(libvirt_version)"
    [ -n "$version" ] && [ "${version%%.*}" -ge "$libvirt_needed" ] && command -v virsh >/dev/null &&
        ls /usr/lib/*/libvirt/connection-driver/libvirt_driver_qemu.so >/dev/null 2>&1
}

on_bookworm() {
    (. /etc/os-release && [ "${VERSION_CODENAME:-}" = bookworm ])
}

# QEMU, libvirt, and the packages they need in the same version; everything else stays with the release.
from_backports() {
    if on_bookworm; then sed "s|\$|/$backports|"; else cat; fi
}

add_backports() {
    local sources=/etc/apt/sources.list.d/$backports.sources
    if grep -Eqrs --include='*.list' --include='*.sources' "^[^#]*\b$backports\b" /etc/apt; then
        return
    fi
    step "adding the package source $backports ($sources)" as_root tee "$sources" <<EOF
Types: deb
URIs: $(debian_mirror)
Suites: $backports
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
EOF
}

update_package_lists() {
    [ -z "${lists_are_new:-}" ] || return 0
    step "fetching the lists of Debian packages" as_root apt-get update -qq -o DPkg::Lock::Timeout=300
    lists_are_new=yes
}

# The kernel's package is unpacked, not installed: it must not become this machine's own kernel.
fetch_kernel() {
    ! grep -qsx "$kernel_needs" "$cache"/linux/boot/config-* || return 0
    on_bookworm && add_backports
    kernel_package >/dev/null || update_package_lists
    local package work
    package="$(kernel_package)" || fail "The package $kernel is not in Debian's package lists."
    work="$(mktemp -d "$cache/new.XXXXXX")"
    trap 'rm -rf "$work"' EXIT
    step "fetching the guest's kernel ($package)" in_directory "$work" apt-get download -qq "$package"
    step "unpacking it into $cache/linux" dpkg-deb -x "$work"/*.deb "$work/linux"
    rm -rf "$cache/linux"
    mv -T "$work/linux" "$cache/linux"
    rm -rf "$work"
    trap - EXIT
}

kernel_package() {
    apt-cache depends "$(from_backports <<<"$kernel")" 2>/dev/null |
        sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1 | grep .
}

# Builds again only when something has changed that the environment is made from.
make_environment() {
    local stamp="$venv/.made-from" now
    now="$(environment_inputs)"
    [ "$(cat "$stamp" 2>/dev/null)" != "$now" ] || return 0
    [ -x "$python" ] || fail "There is no $python. Set PYTHON to a Python 3.11 or later."
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "$python is $("$python" --version), but 3.11 or later is needed. Set PYTHON to another one."
    # Settings of the caller that would make Python or pip work somewhere else than in .venv.
    unset PYTHONHOME PYTHONPATH PIP_TARGET PIP_PREFIX PIP_ROOT PIP_USER PIP_REQUIRE_VIRTUALENV
    # A later python3 in the same place leaves an environment that looks complete and is not.
    "$venv/bin/python" -c 'import pip' 2>/dev/null ||
        step "making the Python environment .venv" "$python" -m venv --clear "$venv"
    remove_orphans
    step "installing vhostd and its Python packages into .venv" \
        in_directory "$root" "$venv/bin/python" -m pip install --quiet --editable '.[test]'
    echo "$now" >"$stamp"
}

# Native modules whose source is gone, or has another name now, would still be found by Python.
remove_orphans() {
    local module
    for module in "$root"/vhostd/ring/*.{c,so} "$root"/devices/*/*.{c,so}; do
        [ -e "${module%%.*}.pyx" ] || rm -f "$module"
    done
}

environment_inputs() {
    echo "$python" "$("$python" --version 2>&1)"
    (cd "$root" && find pyproject.toml vhostd devices -type f \
        \( -path 'devices/programs/*' -o -name '*.toml' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.h' \) -print0 | sort -z | xargs -0 sha256sum)
}

in_directory() {
    (cd "$1" && shift && "$@")
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        echo "This needs root or sudo: $*" >&2
        return 1
    fi
}

# step DESCRIPTION COMMAND...: says what happens; shows the end of the command's output only if it fails.
step() {
    echo "setup: $1"
    shift
    if ! "$@" >"$log" 2>&1; then
        tail -n 30 "$log" >&2
        fail "That did not work: $* (all of its output: $log)"
    fi
}

fail() {
    echo "setup: $*" >&2
    exit 1
}

main
