"""A display in a domain whose memory is not shared: libvirt starts it, as it would not with a disk."""

import re
import time
from collections.abc import Iterator

import pytest

from tests.libvirt.domain import VIDEO, Domain, boot_elements, document
from tests.libvirt.libvirtd import Libvirtd

pytestmark = pytest.mark.guest

HUNG = 5.0  # seconds that no busy machine needs to destroy a domain
WARNING = 4  # in syslog
COMPLAINT = re.compile("failed to (read|write) msg", re.IGNORECASE)
EXPLANATION = "the front-end shares no guest memory"


@pytest.fixture(scope="module")
def domain(libvirtd: Libvirtd) -> Iterator[Domain]:
    """One whose guest has tried to use its display."""
    xml = document("unshared", VIDEO, backing="", system=boot_elements(), mebibytes=512)
    with Domain(libvirtd, "unshared", xml) as domain:
        libvirtd.syslog.wait(EXPLANATION)
        yield domain


def test_the_program_lives_on(domain: Domain) -> None:
    """QEMU, if it were gone, would fill the disk with complaints."""
    domain.virsh("screenshot", "/run/unshared.picture")
    assert domain.program.alive
    assert not COMPLAINT.search(domain.qemu_log())


def test_the_program_says_so_in_syslog(domain: Domain, libvirtd: Libvirtd) -> None:
    """Nobody would see it anywhere else; once for each ring."""
    lines = libvirtd.syslog.lines(domain.program.pid)
    rings = [re.search(rf"refused: vring (\d): {EXPLANATION}", line.text) for line in lines]
    assert [ring and ring[1] for ring in rings] == ["0", "1"], lines
    assert all(line.program == "vhost-user-gpu" and line.severity == WARNING for line in lines)


def test_the_domain_can_be_destroyed(domain: Domain) -> None:
    program = domain.program
    begin = time.monotonic()
    domain.virsh("destroy")
    assert time.monotonic() - begin < HUNG
    assert not program.alive
    assert domain.left() == []
