"""What `--print-capabilities` prints: derived from the device, never written twice."""

from vhostd.virtio.device import Device


def capabilities(kind: type[Device]) -> str:
    """The JSON object of the conventions: the description's type, and the device's optional features."""
    # Plain words all of them; importing json would cost more than the rest of this.
    features = ", ".join(f'"{name}"' for name in kind.capabilities)
    return f'{{"type": "{kind.kind.description_type}", "features": [{features}]}}'
