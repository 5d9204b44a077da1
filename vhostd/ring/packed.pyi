from typing import final

from vhostd.ring.ring import Ring

@final
class PackedRing(Ring): ...
