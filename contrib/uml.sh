#!/usr/bin/env bash
# Unpacks a newer User-mode Linux into the user's cache, where the one of Debian 12 does not run: up to 6.12 it cannot
# keep the registers of a processor with AMX. tests/uml/linux.py runs what is unpacked here.
set -euo pipefail

grep -qw amx_tile /proc/cpuinfo || exit 0

readonly what="User-mode Linux" suite=forky
readonly packages=(user-mode-linux)
. "$(dirname "${BASH_SOURCE[0]}")/cache.sh"
readonly target="$cache/uml-$suite"

. "$(dirname "${BASH_SOURCE[0]}")/unpack.sh"

try() {
    [ -x "$work/root/usr/bin/linux.uml" ] || exit
}

unpack_packages
