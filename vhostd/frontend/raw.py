"""Messages as no front-end should send them."""

from vhostd.wire.framing import HEADER, NEED_REPLY, REPLY, VERSION

__all__ = ["NEED_REPLY", "REPLY", "VERSION", "raw_message"]


def raw_message(
    request: int, payload: bytes = b"", *, flags: int = VERSION, size: int | None = None
) -> bytes:
    """A message's bytes, for `Frontend.send_raw`. `flags` are its version and the bits beside that.

    `size` is what the header says of the payload, in place of its length.
    """
    return HEADER.pack(request, flags, len(payload) if size is None else size) + payload
