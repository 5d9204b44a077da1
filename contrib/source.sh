# For the scripts here that build.

# Copies to a new folder what a build is made from, without what was built here before.
copy_source() {
    mkdir -p "$1"
    (cd "$(dirname "${BASH_SOURCE[0]}")/.." &&
        cp -r --parents pyproject.toml ./*.md LICENSE docs contrib/*.png share contrib/systemd vhostd devices "$1")
    find "$1" \( -name '*.so' -o -name '*.c' -o -name '*.egg-info' -o -name __pycache__ \) -prune -exec rm -rf {} +
}
