#!/usr/bin/env bash
# Shows vhostd at work: a Linux guest under QEMU with a virtual keyboard, a source of randomness and a display,
# each of them a vhostd program. Installs what is missing first. Takes about a minute.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
contrib/setup.sh
exec .venv/bin/python -m contrib.demo
