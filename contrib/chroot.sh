# For the scripts here that make chroots of Debian. They need root, and set `cache` and `work`.

readonly quick=(-qq --yes --no-install-recommends)

install_debootstrap() {
    command -v debootstrap >/dev/null && return
    apt-get update -qq -o DPkg::Lock::Timeout=300 &&
        apt-get install "${quick[@]}" -o DPkg::Lock::Timeout=300 debootstrap
}

# Reaches the mirror as this machine does, starts no services, and does not wait for the disk.
prepare() {
    cp /etc/resolv.conf "$1/etc/resolv.conf" || exit
    apt-config dump | grep -i '^Acquire::.*proxy' >"$1/etc/apt/apt.conf.d/host" || true
    echo force-unsafe-io >"$1/etc/dpkg/dpkg.cfg.d/unsafe-io" || exit
    printf '#!/bin/sh\nexit 101\n' >"$1/usr/sbin/policy-rc.d" || exit
    chmod +x "$1/usr/sbin/policy-rc.d" || exit
}

inside() {
    local root="$work/$1"
    shift
    chroot "$root" env DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 HOME=/root "$@"
}
