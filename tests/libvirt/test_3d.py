"""vhost-user-gpu with 3D, as libvirt finds and launches it for <acceleration accel3d='yes'>."""

import sys
from pathlib import Path

import pytest

from tests.guest.screen import Picture
from tests.libvirt.domain import SHARED_MEMORY, VIDEO, Domain, GuestDomain, document
from tests.libvirt.host import HostProblem
from tests.libvirt.libvirtd import Libvirtd

DRAW = [sys.executable, "-m", "tests.guest.inside.gl_draw"]
RESOLUTION = "<resolution x='640' y='480'/>"
PATIENCE = 60.0


def video(acceleration: str) -> str:
    """The display, with more about its acceleration."""
    return VIDEO.replace("accel2d='no'", f"accel2d='no' {acceleration}")


@pytest.mark.guest
def test_a_guest_draws_with_opengl(libvirtd: Libvirtd) -> None:
    display = video("accel3d='yes'").replace("</model>", f"{RESOLUTION}</model>")
    with GuestDomain(libvirtd, "drawing", display, SHARED_MEMORY) as domain:
        assert domain.program.argv()[-1] == "--virgl"
        pid = domain.call("start", argv=[*DRAW, "show", "computed", "1"])
        output = domain.call("wait_output", pid=pid, text="shown 1 by ", timeout=PATIENCE)
        assert "shown 1 by virgl" in output
        domain.wait_picture(Picture.of_seed(640, 480, 1))


@pytest.mark.skipif(Path("/dev/dri").exists(), reason="this host has a node")
def test_a_node_finds_no_program_where_there_is_none(libvirtd: Libvirtd) -> None:
    display = video("accel3d='yes' rendernode='/dev/null'")
    with pytest.raises(HostProblem, match="Unable to find a satisfying vhost-user-gpu"):
        Domain(libvirtd, "nodeless", document("nodeless", display), paused=True)
