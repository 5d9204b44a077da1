# For the scripts here: where they keep what takes long to fetch or to make. Sets `cache`.

# The user may have no HOME, as a service has none. Then ~ is what the system knows of the user.
[ -n "${HOME:-}" ] || { unset HOME && HOME="$(echo ~)" && export HOME; }
readonly cache="${XDG_CACHE_HOME:-$HOME/.cache}/vhostd"
