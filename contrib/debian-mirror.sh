# For the scripts here that fetch from Debian.

# The mirror that this machine uses for its own release.
debian_mirror() {
    local uri
    uri="$(apt-get indextargets --format '$(REPO_URI)' 'Origin: Debian' 'Label: Debian' 2>/dev/null | head -n 1)"
    echo "${uri:-http://deb.debian.org/debian}"
}
