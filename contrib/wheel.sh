#!/usr/bin/env bash
# Builds the wheel, for this machine's processor and the version of Python that builds it. Needs gcc and Python's
# headers, and an index for pip: contrib/setup.sh has installed what it takes.
#
#     contrib/wheel.sh [FOLDER]     leaves vhostd-*.whl in FOLDER (default: build/wheel)
#
# PYTHON names the interpreter (default: the one in .venv).
set -euo pipefail

readonly root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
readonly output="${1:-$root/build/wheel}"
readonly python="${PYTHON:-$root/.venv/bin/python}"

. "$root/contrib/source.sh"

main() {
    [ -x "$python" ] || { echo "wheel: there is no $python: run contrib/setup.sh, or set PYTHON" >&2 && exit 1; }
    local work
    work="$(mktemp -d)"
    trap "rm -rf '$work'" EXIT
    copy_source "$work/vhostd"
    mkdir -p "$output"
    rm -f "$output"/vhostd-*.whl
    "$python" -m pip wheel --quiet --no-deps --wheel-dir "$output" "$work/vhostd"
    ls "$output"/vhostd-*.whl
}

main
