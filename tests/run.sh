#!/usr/bin/env bash
# Runs everything: installs what is missing, the whole suite, and then the tests of the compiled part once more,
# built with address and undefined-behaviour sanitizers. Needs root. Never asks.
#
#     tests/run.sh --quick ...    an answer within three minutes: no guests, and what needs no root
#     tests/run.sh ...            what these arguments of pytest select, and the compiled part
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
. contrib/source.sh
readonly python="$PWD/.venv/bin/python"
readonly sanitized="$PWD/build/sanitized"
readonly sanitizers="-fsanitize=address,undefined -fno-sanitize-recover=undefined"
readonly interrupted=2 # pytest's exit status
readonly guests=(tests/guest tests/uml)
readonly guests_log="$PWD/build/guests.log"

main() {
    if [ "${1:-}" = --quick ]; then
        shift
        contrib/setup.sh
        quick "$@"
        exit
    fi
    if [ "$(id -u)" != 0 ]; then
        echo "tests: the whole suite needs root, for mounts, chroots and service managers. Without: tests/run.sh --quick" >&2
        exit 1
    fi
    contrib/setup.sh
    contrib/debian-chroot.sh >/dev/null
    local status=0 with_guests=0 with_sanitizers=0
    if [ "$#" = 0 ]; then
        start_guests
        set -- "${guests[@]/#/--ignore=}"
    fi
    "$python" -m pytest "$@" || status=$?
    [ "$status" != "$interrupted" ] || exit "$status"
    build_sanitized
    test_sanitized || with_sanitizers=$?
    [ -z "${guests_pid:-}" ] || finish_guests || with_guests=$?
    exit $((status ? status : with_guests ? with_guests : with_sanitizers))
}

# A guest keeps one processor busy. So the guests run beside all else, and what they say is shown afterwards.
start_guests() {
    echo "tests: guests run meanwhile, and write to $guests_log"
    mkdir -p "$(dirname "$guests_log")"
    "$python" -m pytest "${guests[@]}" >"$guests_log" 2>&1 &
    guests_pid=$!
    trap 'kill -INT $guests_pid 2>/dev/null; wait $guests_pid' EXIT
}

finish_guests() {
    local status=0
    wait "$guests_pid" || status=$?
    trap - EXIT
    cat "$guests_log"
    return "$status"
}

quick() {
    "$python" -m pytest --numprocesses=auto --dist=worksteal --hypothesis-profile=quick -m "not guest" \
        tests/test_*.py tests/{devices,frontend,host,ring,storage,vhost_user,virtio,wire} "$@"
}

# Builds a copy of the tree, so that neither build ever takes the other's objects for its own.
build_sanitized() {
    local stamp="$sanitized/made-from" now
    now="$(sanitized_inputs)"
    [ "$(cat "$stamp" 2>/dev/null)" != "$now" ] || return 0
    echo "building the ring with sanitizers"
    rm -rf "$sanitized"
    copy_source "$sanitized/source"
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

# LeakSanitizer is off because Python itself leaves much for the end of the process. What a sanitizer says goes to
# stderr right before that end, where pytest must not keep it.
test_sanitized() {
    echo "testing the ring with sanitizers"
    LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)" \
        ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONMALLOC=malloc \
        SANITIZED_TREE="$sanitized/tree" \
        "$python" -m pytest --capture=sys -p tests.sanitized -o "pythonpath=$sanitized/tree ." tests/ring \
        tests/devices/vhost_user_blk/test_transfers.py tests/devices/vhost_user_blk/test_requests_properties.py \
        tests/devices/vhost_user_console/test_{backlog,console}.py \
        tests/devices/vhost_user_gpu/virgl/test_library.py \
        tests/devices/vhost_user_net/test_{net,offloads}.py \
        tests/devices/vhost_user_vsock/test_{credit,hostile,messages}.py
}

main "$@"
