"""What `--print-capabilities` prints: derived from the device, never written twice."""

import json

from vhostd.device import Device


def capabilities(kind: type[Device]) -> str:
    """The JSON object of the conventions: the description's type, and the device's optional features."""
    return json.dumps({"type": kind.kind.description_type, "features": list(kind.capabilities)})
