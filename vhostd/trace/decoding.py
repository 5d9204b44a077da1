"""A message in words: its name, and its fields by their names, from its row."""

from collections.abc import Callable, Mapping
from typing import Any

from vhostd.errors import MalformedMessage
from vhostd.trace.entries import Line, Message, Side
from vhostd.trace.features import STATUS, bits, device_features, names_of
from vhostd.vhost_user import gpu_messages as display
from vhostd.vhost_user.messages import (
    BACK_END,
    BACKEND_IOTLB_MSG,
    FRONT_END,
    GET_CONFIG,
    GET_FEATURES,
    GET_PROTOCOL_FEATURES,
    GET_STATUS,
    IOTLB_MSG,
    SET_FEATURES,
    SET_PROTOCOL_FEATURES,
    SET_STATUS,
    ConfigSpace,
    CryptoSession,
    IotlbType,
    MemoryTable,
    ProtocolFeature,
    SharedMemoryConfig,
    VringFd,
)
from vhostd.wire.framing import REPLY
from vhostd.wire.rows import U64, Empty, Row

DIALECTS = {Line.MAIN: FRONT_END, Line.BACKEND: BACK_END, Line.DISPLAY: display.DISPLAY}
ASKING = {Line.MAIN: Side.FRONT_END, Line.BACKEND: Side.BACK_END, Line.DISPLAY: Side.BACK_END}
ALL = (1 << 64) - 1  # every feature
SHOWN = 32  # bytes of a field, or of a payload that nobody knows
IOTLB_TYPES = {value: name for name, value in vars(IotlbType).items() if isinstance(value, int)}

Fields = dict[str, Any]


class Decoder:
    """Decodes the messages of a device whose type is known, or not."""

    def __init__(self, device: str | None = None) -> None:
        features, protocol = device_features(device), names_of(ProtocolFeature)
        shown = names_of(display.DisplayFeature)
        self._masks: Mapping[Row[Any, Any], Mapping[int, str]] = {
            **dict.fromkeys((GET_FEATURES, SET_FEATURES), features),
            **dict.fromkeys((GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES), protocol),
            **dict.fromkeys((display.GET_PROTOCOL_FEATURES, display.SET_PROTOCOL_FEATURES), shown),
            **dict.fromkeys((GET_STATUS, SET_STATUS), STATUS),
        }

    def decode(self, message: Message) -> Message:
        """Gives the message its name and its fields."""
        row = DIALECTS[message.line].requests.get(message.request)
        message.name = row.name if row else f"request {message.request}"
        if row is None:
            message.fields = {"payload": brief(message.payload, message.size)} if message.size else {}
            return message
        try:
            message.fields = self._fields(row, message)
        except MalformedMessage as error:
            message.fields = {"malformed": str(error), "payload": brief(message.payload, message.size)}
        return message

    def _fields(self, row: Row[Any, Any], message: Message) -> Fields:
        if not message.flags & REPLY:
            return self._named(row, message, row.admit(message.payload, row.fds[0], ALL))
        if row.reply is None:
            acked = Row(row.request, Empty, reply=U64).admit_reply(message.payload, 0)
            return {"ack": acked.value}
        if row.refusal is not None and message.payload == row.refusal.pack():
            return {"refused": True}
        return self._named(row, message, row.admit_reply(message.payload, row.reply_fds[0]))

    def _named(self, row: Row[Any, Any], message: Message, payload: Any) -> Fields:
        if row in self._masks and isinstance(payload, U64):
            return {"value": payload.value, "bits": bits(payload.value, self._masks[row])}
        fields = fields_of(payload)
        if row is GET_CONFIG and not message.flags & REPLY:
            del fields["data"]  # room for the answer
        if row in (IOTLB_MSG, BACKEND_IOTLB_MSG) and "type" in fields:
            fields["type"] = IOTLB_TYPES.get(fields["type"], fields["type"])
        return fields


def fields_of(payload: Any) -> Fields:
    """The fields of a decoded payload, without padding. Long bytes are cut."""
    for layout, show in SPECIAL.items():
        if isinstance(payload, layout):
            return show(payload)
    fields = {name: getattr(payload, name) for name in payload.FIELDS if name != "padding"}
    return {name: brief(each) if isinstance(each, bytes) else each for name, each in fields.items()}


def _vring_fd(payload: VringFd) -> Fields:
    return {"index": payload.index} | ({} if payload.has_fd else {"polled": True})


def _memory_table(payload: MemoryTable) -> Fields:
    return {"regions": [fields_of(region) for region in payload.regions]}


def _config(payload: ConfigSpace) -> Fields:
    head = {"offset": payload.offset, "size": len(payload.data)}
    return head | ({"flags": payload.flags} if payload.flags else {}) | {"data": brief(payload.data)}


def _shared_memory(payload: SharedMemoryConfig) -> Fields:
    sizes = memoryview(payload.sizes).cast("Q")
    return {
        "num_regions": payload.num_regions,
        "sizes": {str(i): size for i, size in enumerate(sizes) if size},
    }


SPECIAL: Mapping[type[Any], Callable[[Any], Fields]] = {
    VringFd: _vring_fd,
    MemoryTable: _memory_table,
    ConfigSpace: _config,
    SharedMemoryConfig: _shared_memory,
    CryptoSession: lambda payload: {"session": brief(payload.data)},
}


def brief(data: bytes, size: int | None = None) -> str:
    """The beginning of the bytes in hexadecimal, and how many there are if that is not all."""
    size = len(data) if size is None else size
    return data.hex() if size <= SHOWN else f"{data[:SHOWN].hex()}... ({size} bytes)"
