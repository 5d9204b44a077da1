# For the scripts here that unpack packages of a newer Debian into the user's cache, with all that they need, the
# C library too. They set `what`, `suite`, `packages`, `cache` and `target`, and define `try`.
#
# Nothing is installed, no root is needed, and nothing runs in a chroot: apt has lists and a state of its own.

readonly log="$target.log"
readonly keys=/usr/share/keyrings/debian-archive-keyring.gpg

. "$(dirname "${BASH_SOURCE[0]}")/debian-mirror.sh"

unpack_packages() {
    mkdir -p "$cache"
    exec {lock}>"$target.lock"
    flock "$lock"
    [ ! -d "$target" ] || return 0
    echo "setup: fetching $what of Debian $suite into $target"
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
