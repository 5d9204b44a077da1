#!/usr/bin/env bash
# Runs everything: installs what is missing, the whole suite (arguments go to pytest), and then the tests of
# the compiled part once more, built with address and undefined-behaviour sanitizers.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
readonly python="$PWD/.venv/bin/python"
readonly sanitized="$PWD/build/sanitized"
readonly sanitizers="-fsanitize=address,undefined -fno-sanitize-recover=undefined"

main() {
    contrib/setup.sh
    contrib/debian-chroot.sh >/dev/null
    "$python" -m pytest "$@"
    build_sanitized
    test_sanitized
}

# Builds a copy of the tree, so that neither build ever takes the other's objects for its own.
build_sanitized() {
    local stamp="$sanitized/made-from" now
    now="$(sanitized_inputs)"
    [ "$(cat "$stamp" 2>/dev/null)" != "$now" ] || return 0
    echo "building the ring with sanitizers"
    rm -rf "$sanitized"
    mkdir -p "$sanitized/source"
    cp -r --parents pyproject.toml README.md LICENSE share contrib/systemd vhostd devices "$sanitized/source"
    find "$sanitized/source" \( -name '*.so' -o -name '*.c' -o -name '*.egg-info' \) -prune -exec rm -rf {} +
    CFLAGS="-O1 -g $sanitizers" LDFLAGS="$sanitizers" \
        "$python" -m pip install --quiet --no-deps --target "$sanitized/tree" "$sanitized/source"
    echo "$now" >"$stamp"
}

sanitized_inputs() {
    gcc --version | head -n 1
    "$python" --version
    find pyproject.toml vhostd devices -type f -not -name '*.so' -not -name '*.c' -not -path '*/__pycache__/*' \
        -not -path '*.egg-info/*' -print0 | sort -z | xargs -0 sha256sum
}

# LeakSanitizer is off because Python itself leaves much for the end of the process.
test_sanitized() {
    echo "testing the ring with sanitizers"
    LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)" \
        ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONMALLOC=malloc \
        SANITIZED_TREE="$sanitized/tree" \
        "$python" -m pytest -p tests.sanitized -o "pythonpath=$sanitized/tree ." tests/ring \
        tests/devices/vhost_user_blk/test_transfers.py tests/devices/vhost_user_blk/test_requests_properties.py
}

main "$@"
