#!/usr/bin/env bash
# Prepares a Debian machine: packages, a Python environment in .venv, and, in the user's cache, a kernel for the
# guest and QEMU's disk tools. What is there already is left as it is. No package source is added.
#
#     contrib/setup.sh                for the programs, the demo and the tests
#     contrib/setup.sh demo           for the programs and the demo
#     contrib/setup.sh --ask ...      says what it is going to install, and asks first
#
# PYTHON names the interpreter for .venv (default: /usr/bin/python3).
set -euo pipefail

readonly root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
. "$root/contrib/cache.sh"
. "$root/contrib/debian-mirror.sh"
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
    libseccomp2                                                       # the programs' sandbox
    busybox-static                                                    # the guest's initramfs
    e2fsprogs mount                                                   # used in the guest, on a disk
)
readonly test_packages=(
    systemd evemu-tools edid-decode    # used by some tests
    mandoc groff-base zsh fish         # to check manual pages and completions
    fio util-linux dmsetup             # used in the guest, on a disk
    qemu-guest-agent                   # run in the guest, at a serial port
    libvirglrenderer1                  # 3D, in software: the host's part; the guest's is below
    libegl1 libgles2 libgbm1 libgl1-mesa-dri mesa-utils kmscube glmark2-es2-drm cage
    user-mode-linux                    # a kernel that runs as a process: another front-end
    iperf3 passt iproute2              # a guest's network
)
readonly qemu_packages=(qemu-system-x86 qemu-system-common qemu-system-data seabios)
readonly qemu_test_packages=(qemu-system-modules-opengl) # -display dbus
readonly libvirt_packages=(
    libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients # used by some tests
    libvirt0 libvirt-common libvirt-daemon-common libvirt-daemon-log
)

main() {
    exec {terminal}>&2 # Ctrl-C comes while what runs writes to the log
    read_arguments "$@"
    trap interrupted INT
    check_machine
    mkdir -p "$cache"
    mapfile -t missing < <(missing_packages)
    if [ -n "$ask" ] && { [ "${#missing[@]}" -gt 0 ] || ! kernel_is_there; }; then
        ask_first
    fi
    one_at_a_time
    install_packages
    fetch_kernel
    [ "$purpose" = demo ] || "$root/contrib/qemu-tools.sh"
    [ "$purpose" = demo ] || "$root/contrib/uml.sh"
    [ "$purpose" = demo ] || "$root/contrib/mesa.sh"
    make_environment
}

read_arguments() {
    ask='' purpose=tests
    local argument
    for argument; do
        case "$argument" in
            --ask) ask=yes ;;
            demo) purpose=demo ;;
            *) fail "'$argument' is none of its arguments. They are: --ask, demo" ;;
        esac
    done
}

interrupted() {
    stop_progress
    echo "setup: interrupted" >&"$terminal"
    exit 130
}

check_machine() {
    [ "$(uname -m)" = x86_64 ] || fail "The guest is an x86-64 machine, so this needs an x86-64 host."
    if ! command -v apt-get dpkg-query >/dev/null; then
        fail "This script installs Debian packages and found no apt-get. It is made for Debian 12 or later."
    fi
}

# Figures are those of a bare Debian.
ask_first() {
    echo "setup: this is going to"
    if [ "${#missing[@]}" -gt 0 ]; then
        echo "  - install ${#missing[@]} Debian packages and what they depend on: ${missing[*]%/*}" | fold -s -w 100
    fi
    if grep -q "/$backports" <<<"${missing[*]}"; then
        echo "    (those of QEMU from $backports, which is not added to this machine's package sources)"
    fi
    kernel_is_there || echo "  - fetch a kernel for the guest into $cache"
    echo "  - make a Python environment in $venv"
    if [ "$purpose" = demo ]; then
        echo "It takes about 2 minutes, 250 MB of downloads and 800 MB of disk where all of it is missing."
    fi
    [ -t 0 ] || fail "Nothing is installed: there is no terminal to ask at. To go on without being asked, say --yes."
    local answer
    read -r -p "Go on? [y/N] " answer || true
    case "$answer" in
        [yY]*) ;;
        *) fail "Nothing is installed." ;;
    esac
}

one_at_a_time() {
    exec {lock}>"$cache/setup.lock"
    flock "$lock"
}

install_packages() {
    mapfile -t missing < <(missing_packages)
    [ "${#missing[@]}" -gt 0 ] || return 0
    fetch_package_lists
    step "fetching ${#missing[@]} Debian packages and what they depend on: ${missing[*]%/*}" \
        as_root "${install[@]}" --download-only "${missing[@]}"
    step "installing them" uninterrupted without_services as_root "${install[@]}" "${missing[@]}"
    qemu_is_new_enough || fail "QEMU $qemu_needed or later is needed; this is $(qemu_version)."
    [ "$purpose" = demo ] || libvirt_is_new_enough ||
        fail "libvirt $libvirt_needed or later is needed; this is $(libvirt_version)."
}

# Ctrl-C has to wait: packages that are half installed would be left to the user.
uninterrupted() (
    trap '' INT
    "$@"
)

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
    local installed package
    installed="$(dpkg-query -W -f '${db:Status-Status} ${Package}\n' 2>/dev/null)"
    needed_packages | while read -r package; do
        grep -qx "installed $package" <<<"$installed" || echo "$package"
    done
    qemu_is_new_enough || printf '%s\n' "${qemu_packages[@]}" | from_backports
    [ "$purpose" = tests ] || return 0
    qemu_has_dbus_display || printf '%s\n' "${qemu_test_packages[@]}" | from_backports
    libvirt_is_new_enough || printf '%s\n' "${libvirt_packages[@]}" | from_backports
}

needed_packages() {
    printf '%s\n' "${packages[@]}"
    [ "$purpose" = demo ] || printf '%s\n' "${test_packages[@]}"
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
    grep -qx dbus <<<"$(qemu-system-x86_64 -display help 2>/dev/null)"
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

# Makes `apt`, options with which apt has the machine's package sources, and on Debian 12 its backports, in lists
# that are gone at the end: the machine's own sources and lists stay as they are.
fetch_package_lists() {
    [ -z "${apt:-}" ] || return 0
    lists="$(mktemp -d)"
    trap 'rm -rf "$lists"' EXIT
    chmod 755 "$lists" && mkdir -p "$lists/sources" "$lists/lists/partial"
    find /etc/apt/sources.list.d -maxdepth 1 -type f -exec ln -s -t "$lists/sources" {} + 2>/dev/null || true
    if on_bookworm && ! has_backports; then backports_source >"$lists/sources/$backports.sources"; fi
    apt=(-q -o "Dir::Etc::SourceParts=$lists/sources" -o "Dir::State::Lists=$lists/lists" -o Dir::Cache::pkgcache=
        -o Dir::Cache::srcpkgcache= -o APT::Sandbox::User=root)
    install=(env DEBIAN_FRONTEND=noninteractive apt-get "${apt[@]}" install --yes --no-install-recommends
        -o DPkg::Lock::Timeout=300)
    step "fetching the lists of Debian packages" apt-get "${apt[@]}" update
}

has_backports() {
    grep -Eqrs --include='*.list' --include='*.sources' "^[^#]*\b$backports\b" /etc/apt
}

backports_source() {
    cat <<END
Types: deb
URIs: $(debian_mirror)
Suites: $backports
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
END
}

kernel_is_there() {
    grep -qsx "$kernel_needs" "$cache"/linux/boot/config-*
}

# The kernel's package is unpacked, not installed: it must not become this machine's own kernel.
fetch_kernel() {
    ! kernel_is_there || return 0
    fetch_package_lists
    local package work="$lists/kernel"
    package="$(kernel_package)" || fail "The package $kernel is not in Debian's package lists."
    mkdir "$work"
    step "fetching the guest's kernel ($package)" in_directory "$work" apt-get "${apt[@]}" download "$package"
    step "unpacking it into $cache/linux" dpkg-deb -x "$work"/*.deb "$work/linux"
    rm -rf "$cache/linux" "$cache/linux.new"
    mv -T "$work/linux" "$cache/linux.new"
    mv -T "$cache/linux.new" "$cache/linux"
}

kernel_package() {
    apt-cache "${apt[@]}" depends "$(from_backports <<<"$kernel")" 2>/dev/null |
        sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1 | grep .
}

# Builds again only when something has changed that the environment is made from.
make_environment() {
    local stamp="$venv/.made-from" now made
    now="$(environment_inputs)"
    made="$(cat "$stamp" 2>/dev/null || true)"
    if [ "$made" = "tests $now" ] || [ "$made" = "$purpose $now" ]; then return 0; fi
    [ -x "$python" ] || fail "There is no $python. Set PYTHON to a Python 3.11 or later."
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "$python is $("$python" --version), but 3.11 or later is needed. Set PYTHON to another one."
    # Settings of the caller that would make Python or pip work somewhere else than in .venv.
    unset PYTHONHOME PYTHONPATH PIP_TARGET PIP_PREFIX PIP_ROOT PIP_USER PIP_REQUIRE_VIRTUALENV
    # A later python3 in the same place leaves an environment that looks complete and is not.
    "$venv/bin/python" -c 'import pip' 2>/dev/null ||
        step "making the Python environment .venv" "$python" -m venv --clear "$venv"
    remove_orphans
    local project=.
    [ "$purpose" = demo ] || project='.[test]'
    step "building vhostd and installing its Python packages into .venv" \
        in_directory "$root" "$venv/bin/python" -m pip install --editable "$project"
    echo "$purpose $now" >"$stamp"
}

# Native modules whose source is gone, or has another name now, would still be found by Python.
remove_orphans() {
    local module
    find "$root/vhostd" "$root/devices" \( -name '*.c' -o -name '*.so' \) | while read -r module; do
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

# step DESCRIPTION COMMAND...: says what happens, and how long it takes; shows what went wrong.
step() {
    echo "setup: $1"
    shift
    # A password is asked for now, not in the middle of the progress.
    [ "$(id -u)" = 0 ] || [[ " $* " != *" as_root "* ]] || ! command -v sudo >/dev/null || sudo --validate
    local status=0
    show_progress &
    progress=$!
    "$@" >"$log" 2>&1 </dev/null || status=$?
    stop_progress
    [ "$status" = 0 ] && return
    what_went_wrong >&2
    fail "That did not work: $* (all of its output: $log)"
}

# On a terminal the seconds and the last line of the output; elsewhere a sign of life, each half minute.
show_progress() {
    SECONDS=0
    while sleep 1 >/dev/null 2>&1 && kill -0 $$ 2>/dev/null; do
        if [ -t 1 ]; then
            printf '\r\033[K%5d s  %s' $SECONDS "$(tail -n 1 "$log" | tr -cd '[:print:]' | cut -c -68)"
        elif ((SECONDS % 30 == 0)); then
            echo "setup: ... $SECONDS s"
        fi
    done
}

stop_progress() {
    [ -n "${progress:-}" ] || return 0
    kill "$progress" 2>/dev/null || true
    wait "$progress" 2>/dev/null || true
    progress=''
    [ ! -t 1 ] || printf '\r\033[K'
}

# The end of the output; if Cython found a mistake, that one, which pip follows up with much of its own.
what_went_wrong() {
    if grep -q 'Error compiling Cython file' "$log"; then
        sed -n '/Error compiling Cython file/,/^ *Traceback/p' "$log" | head -n 40
    else
        tail -n 30 "$log"
    fi
}

fail() {
    echo "setup: $*" >&2
    exit 1
}

main "$@"
