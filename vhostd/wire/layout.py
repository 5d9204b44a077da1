"""C structs as annotated classes.

    class VringState(Layout, byteorder="="):
        \"\"\"A vring state description (vhost-user, "Payload types").\"\"\"
        index: u32
        num: u32

A field's annotation is its type in the struct. Fields are in wire order, without implicit padding: padding is
a field, as in the specifications. Instances are immutable and compare by value.
"""

import struct
from typing import Annotated, Any, ClassVar, Self, dataclass_transform

u8 = Annotated[int, "B"]
u16 = Annotated[int, "H"]
u32 = Annotated[int, "I"]
u64 = Annotated[int, "Q"]
s32 = Annotated[int, "i"]


def array(size: int) -> str:
    """The annotation of a byte array: `Annotated[bytes, array(20)]`. Shorter values are zero-padded."""
    return f"{size}s"


@dataclass_transform(kw_only_default=False, frozen_default=True)
class Layout:
    """Base of all C structs; `byteorder` is "<" (virtio 1.x, the default) or "=" (the vhost-user socket)."""

    SIZE: ClassVar[int]
    FIELDS: ClassVar[tuple[str, ...]]
    _struct: ClassVar[struct.Struct]
    _arrays: ClassVar[dict[str, int]]  # the sizes of the byte arrays

    def __init_subclass__(cls, *, byteorder: str = "<") -> None:
        hints = cls.__annotations__
        cls.FIELDS = tuple(hints)
        codes: dict[str, str] = {name: hint.__metadata__[0] for name, hint in hints.items()}
        cls._struct = struct.Struct(byteorder + "".join(codes.values()))
        cls._arrays = {name: int(code[:-1]) for name, code in codes.items() if code.endswith("s")}
        cls.SIZE = cls._struct.size

    def __init__(self, *values: Any, **named: Any) -> None:
        # Plain attribute stores: a frozen dataclass costs more than twice as much to make.
        if len(values) == len(self.FIELDS) and not named:
            self.__dict__.update(zip(self.FIELDS, values, strict=True))
            return
        if len(values) > len(self.FIELDS):
            raise TypeError(f"{type(self).__name__} has {len(self.FIELDS)} fields, not {len(values)}")
        fields = dict(zip(self.FIELDS, values, strict=False)) | named
        for name in self.FIELDS:
            if name not in fields and not hasattr(type(self), name):
                raise TypeError(f"{type(self).__name__} needs {name}")
        if unknown := fields.keys() - set(self.FIELDS):
            raise TypeError(f"{type(self).__name__} has no {', '.join(sorted(unknown))}")
        self.__dict__.update(fields)

    @classmethod
    def unpack(cls, data: bytes | bytearray | memoryview) -> Self:
        """Reads the struct from exactly `SIZE` bytes; raises struct.error for another size."""
        new = cls.__new__(cls)
        new.__dict__.update(zip(cls.FIELDS, cls._struct.unpack(data), strict=True))
        return new

    def pack(self) -> bytes:
        """The struct as `SIZE` bytes; raises struct.error if a value does not fit its field."""
        for name, size in self._arrays.items():
            if len(getattr(self, name)) > size:  # struct would cut it without an error
                raise struct.error(f"{type(self).__name__}.{name} of more than {size} bytes")
        return self._struct.pack(*(getattr(self, name) for name in self.FIELDS))

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.pack() == other.pack()

    def __hash__(self) -> int:
        return hash((type(self), self.pack()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self})"

    def __str__(self) -> str:
        return " ".join(f"{name}={_show(getattr(self, name))}" for name in self.FIELDS)


def _show(value: int | bytes) -> str:
    """Small numbers in decimal; masks and addresses, which are large, in hexadecimal."""
    return f"{value:#x}" if isinstance(value, int) and value > 0xFFFF else repr(value)
