"""What this host has, as far as it decides which programs libvirt can start."""

from pathlib import Path

DRM = Path("/dev/dri")


def has_render_node() -> bool:
    """Whether there is a render node, which libvirt gives to programs that can take one."""
    return any(DRM.glob("renderD*"))
