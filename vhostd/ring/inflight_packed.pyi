from typing import final

from vhostd.ring.inflight import InflightQueue

@final
class PackedInflight(InflightQueue): ...
