"""Programs that the tests of vhostctl make."""

import sys
import textwrap
from pathlib import Path


def script(path: Path, body: str) -> Path:
    """An executable script of sh."""
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def python_script(path: Path, body: str) -> Path:
    """An executable script for the Python that runs the tests."""
    path.write_text(f"#!{sys.executable}\n{textwrap.dedent(body)}")
    path.chmod(0o755)
    return path


def answering(path: Path, output: str) -> Path:
    """A script that prints this, and a line break."""
    return script(path, f"cat <<'END'\n{output}\nEND")
