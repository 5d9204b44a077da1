#!/usr/bin/env bash
# Shows vhostd at work. Says first what it is going to install, and asks; see --help.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

main() {
    local ask=--ask argument
    for argument; do
        case "$argument" in
            -y | --yes) ask= ;;
            -h | --help) usage && exit ;;
            *) echo "demo: '$argument' is none of its options. They are: --yes, --help" >&2 && exit 2 ;;
        esac
    done
    contrib/setup.sh ${ask:+"$ask"} demo
    trap '' INT # it takes Ctrl-C as soon as it can
    exec .venv/bin/python -m contrib.demo
}

usage() {
    cat <<'END'
usage: contrib/demo.sh [--yes]

Boots a Linux guest under QEMU whose disk, keyboard, display and source of randomness are programs of vhostd. Makes a
file on the disk, types on the keyboard, and saves a picture of the screen as build/demo-screen.png.

What it needs is installed first, after a question: Debian packages, a Python environment in .venv, and in ~/.cache
a Linux kernel for the guest. Where all of that is missing it takes about 2 minutes, 250 MB of downloads and 800 MB of
disk. Once it is there, the demo takes half a minute. It runs on Debian 12 or later, as root or with sudo.

  --yes   install without a question; needed where there is no terminal to ask at
  --help  show this
END
}

main "$@"
