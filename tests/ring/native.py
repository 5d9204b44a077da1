"""Native code of a test's own: built when it is first needed, as the author of a shortcut would."""

import importlib.util
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import vhostd

SOURCES = Path(__file__).parent
HEADERS = Path(vhostd.__file__).parents[1]


def built(name: str, folder: Path) -> Any:
    """The module of `name`.pyx beside this file, made in this folder."""
    source, library = folder / f"{name}.c", folder / f"{name}.so"
    _run(sys.executable, "-m", "cython", "-I", HEADERS, SOURCES / f"{name}.pyx", "-o", source)
    include = sysconfig.get_path("include")
    _run("gcc", "-shared", "-fPIC", f"-I{include}", f"-I{HEADERS}/vhostd/ring", source, "-o", library)
    spec = importlib.util.spec_from_file_location(name, library)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _run(*command: object) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
