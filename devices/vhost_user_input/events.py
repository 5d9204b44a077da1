"""The Linux input events that the device looks into (linux/input-event-codes.h).

An event is (type, code, value). On the eventq, and wherever events are kept, it is packed in 8 bytes: type
u16, code u16, value s32, little-endian (virtio 1.3, 5.8.6.2). A *report* is a run of events that ends with
a SYN_REPORT: what changed at one moment.
"""

import struct

EV_SYN = 0x00
EV_KEY = 0x01
EV_REL = 0x02
EV_ABS = 0x03
EV_MSC = 0x04
EV_SW = 0x05
EV_LED = 0x11
EV_SND = 0x12
EV_REP = 0x14
EV_CNT = 0x20

SYN_REPORT = 0
SYN_DROPPED = 3
SYN_LAST = SYN_DROPPED

KEY_REPEATED = 2  # the value of an EV_KEY event for a key that is still pressed

ABS_X = 0x00
ABS_Y = 0x01
ABS_MT_SLOT = 0x2F
ABS_MT_FIRST = 0x30
ABS_MT_POSITION_X = 0x35
ABS_MT_POSITION_Y = 0x36
ABS_MT_TRACKING_ID = 0x39
ABS_MT_LAST = 0x3D
ABS_CNT = 0x40

EVENT = struct.Struct("<HHi")

# The events that the driver sends to the device, on the statusq (virtio 1.3, 5.8.6.1).
STATUS_TYPES = frozenset((EV_LED, EV_SND, EV_REP))

SYN_REPORT_EVENT = EVENT.pack(EV_SYN, SYN_REPORT, 0)
SYN_DROPPED_REPORT = EVENT.pack(EV_SYN, SYN_DROPPED, 0) + SYN_REPORT_EVENT


class BadEvent(ValueError):
    """Text that is not an event, or an event that the device cannot have; names the wrong value."""
