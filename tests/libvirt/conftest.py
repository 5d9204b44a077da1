"""One libvirtd for all the tests here."""

import subprocess
from collections.abc import Iterator

import pytest

from tests.libvirt.host import NAMESPACES
from tests.libvirt.libvirtd import Libvirtd


@pytest.fixture(scope="session")
def libvirtd() -> Iterator[Libvirtd]:
    """Skips where libvirtd cannot have a host of its own: without root, and in most containers."""
    tried = subprocess.run(["unshare", *NAMESPACES, "true"], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"libvirtd needs mounts and processes of its own here: {tried.stderr.strip()}")
    with Libvirtd() as libvirtd:
        yield libvirtd
